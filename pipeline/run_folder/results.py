"""What a run has come to: everything that its report and its summary tell, read from its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.run_config import RunConfig
from pipeline.run_folder.run_dir import RunDir
from shards.core.errors import Refused
from shards.dataset.manifest import Manifest, dataset_exists
from shards.format.pairs import label
from shards.storage.files import commit_bytes, read_bytes
from shards.storage.parquet import read_parquet

Row = Mapping[str, Any]


@dataclass(frozen=True)
class PairStatistics:
    """Totals of a pair data set; `pairs_per_class` is of the rarest and of the commonest class, held out or not."""

    num_training: int
    num_heldout: int
    num_shards: int
    num_bytes: int
    pairs_per_class: tuple[int, int]
    worker_seconds: float
    hosts: tuple[str, ...]
    devices: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> PairStatistics:
        """Totals over all committed shards."""
        heldout = min(manifest.spec.num_heldout, manifest.num_pairs)
        per_class = np.zeros(manifest.spec.num_classes, dtype=np.int64)
        for row in manifest.rows:
            index = np.arange(row.first_pair, row.first_pair + row.num_pairs)
            per_class += np.bincount(label(index, len(per_class)), minlength=len(per_class))
        return cls(
            num_training=manifest.num_pairs - heldout,
            num_heldout=heldout,
            num_shards=len(manifest.rows),
            num_bytes=sum(row.num_bytes for row in manifest.rows),
            pairs_per_class=(int(per_class.min()), int(per_class.max())),
            worker_seconds=sum(row.seconds for row in manifest.rows),
            hosts=tuple(sorted({row.host for row in manifest.rows})),
            devices=tuple(sorted({row.device for row in manifest.rows})),
        )

    @property
    def pairs_per_second(self) -> float:
        """Of one worker: what all shards took, whoever made them and whenever."""
        return (self.num_training + self.num_heldout) / self.worker_seconds if self.worker_seconds else 0.0


@dataclass(frozen=True)
class Results:
    """A run's settings and outcome; what has not been done yet is empty."""

    run_dir: RunDir
    config: RunConfig
    environment: Mapping[str, Any]
    pairs: PairStatistics | None
    metrics: Mapping[str, Sequence[float]]
    evaluation: Mapping[str, Any]
    seconds: Mapping[str, float]
    samples: tuple[Path, ...]
    others: tuple[Mapping[str, Any], ...] = ()

    @property
    def evaluations(self) -> tuple[Mapping[str, Any], ...]:
        """What was judged: by the run's own protocol, then by others, each if it is of the same student."""
        return tuple(one for one in (self.evaluation, *self.others) if one.get("rows"))

    @property
    def rows(self) -> tuple[Row, ...]:
        """One row a method, as evaluation.json holds them."""
        return tuple(self.evaluation.get("rows", ()))


def read_results(run_dir: RunDir) -> Results:
    """Everything that a run's folder tells.

    Raises:
        Refused: the folder is no run.
    """
    evaluation = run_dir.read_json(run_dir.evaluation)
    others = [run_dir.read_json(path) for path in run_dir.other_evaluations]
    return Results(
        run_dir=run_dir,
        config=run_dir.read_config(),
        environment=run_dir.read_json(run_dir.environment),
        pairs=PairStatistics.of(Manifest.open(run_dir.pairs)) if dataset_exists(run_dir.pairs) else None,
        metrics=read_metrics(run_dir.metrics),
        evaluation=evaluation,
        seconds=run_dir.read_json(run_dir.seconds),
        samples=tuple(sorted(run_dir.samples.glob("*.png"))),
        # One of a student that is there no more would pass for this one's.
        others=tuple(one for one in others if same_student(one, evaluation)),
    )


def same_student(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether an evaluation or an export's config.json is of the same weights as another, sampled alike."""
    defaults = {"student_sha256": None, "noise_weight": 0.0}
    return all(one.get(key, default) == other.get(key, default) for key, default in defaults.items())


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The numeric columns of the training log, missing values as NaN; empty where there is no log.

    Raises:
        Refused: it is damaged.
    """
    if not path.is_file():
        return {}
    import pyarrow

    try:
        table = read_parquet(read_bytes(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(
            f"{path} is damaged: delete it; `tokenleap run` joins it again from student/metrics"
        ) from error
    numeric = [
        field.name
        for field in table.schema
        if pyarrow.types.is_integer(field.type) or pyarrow.types.is_floating(field.type)
    ]
    return {
        name: [math.nan if value is None else float(value) for value in table[name].to_pylist()]
        for name in numeric
    }


def add_seconds(run_dir: RunDir, phase: str, seconds: float) -> None:
    """Add a phase's wall time to what earlier runs of the same command took.

    Raises:
        Refused: seconds.json is damaged, or cannot be written.
        Failed: the disk is full.
    """
    before = run_dir.read_json(run_dir.seconds)
    after = {**before, phase: round(before.get(phase, 0.0) + seconds, 3)}
    commit_bytes(run_dir.seconds, (json.dumps(after, indent=2) + "\n").encode())


def seconds_per_image(row: Row, batch_size: int = 1) -> float | None:
    """A method's time for an image at a batch size, None where it was not measured."""
    value = (row.get("seconds_per_image") or {}).get(str(batch_size))
    return None if value is None else float(value)


def speedup(row: Row, rows: Sequence[Row], batch_size: int = 1) -> float | None:
    """How many times as fast as the teacher a method is, None where one of the two was not timed."""
    teacher = next(
        (seconds_per_image(other, batch_size) for other in rows if other["method"] == "teacher"), None
    )
    own = seconds_per_image(row, batch_size)
    return teacher / own if teacher and own else None


def describe_evaluation(evaluation: Mapping[str, Any]) -> str:
    """What the numbers of an evaluation mean nothing without, as in `digits, 2,000 images, noise seed 0`."""
    seed, repeats = evaluation["seed"], evaluation.get("repeats", 1)
    seeds = f"noise seed {seed}" if repeats == 1 else f"noise seeds {seed} to {seed + repeats - 1}"
    reference = f", against {evaluation['reference']}" if evaluation.get("reference") else ""
    features = f", features {evaluation['features']}" if evaluation.get("features") else ""
    return f"{evaluation['protocol']}, {evaluation['num_images']:,} images, {seeds}{reference}{features}"


def steady_batch(rows: Sequence[Row]) -> int | None:
    """The largest batch size that anything was timed at, None where nothing was."""
    return max((int(size) for row in rows for size in row.get("seconds_per_image") or {}), default=None)
