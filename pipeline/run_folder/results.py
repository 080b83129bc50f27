"""The results of a run, read from its folder for the report and the summary."""

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
    """Totals of a pair data set; `pairs_per_class` is the fewest and the most of a class, held-out pairs included."""

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
        """Mean rate of one worker over all committed shards."""
        return (self.num_training + self.num_heldout) / self.worker_seconds if self.worker_seconds else 0.0


@dataclass(frozen=True)
class Results:
    """A run's settings and results; phases that have not run yet are empty."""

    run_dir: RunDir
    config: RunConfig
    environment: Mapping[str, Any]
    pairs: PairStatistics | None
    metrics: Mapping[str, Sequence[float]]
    evaluation: Mapping[str, Any]
    seconds: Mapping[str, float]
    samples: tuple[Path, ...]
    other_evaluations: tuple[Mapping[str, Any], ...] = ()

    @property
    def evaluations(self) -> tuple[Mapping[str, Any], ...]:
        """Evaluations of the current student: by the run's own protocol, then by others."""
        candidates = (self.evaluation, *self.other_evaluations)
        return tuple(evaluation for evaluation in candidates if evaluation.get("rows"))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of evaluation.json, one for each method."""
        return tuple(self.evaluation.get("rows", ()))


def read_results(run_dir: RunDir) -> Results:
    """Read the results of a run from its folder.

    Raises:
        Refused: the folder is not a run.
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
        # An evaluation of an earlier student must not be reported as one of this student.
        other_evaluations=tuple(other for other in others if same_student(other, evaluation)),
    )


def same_student(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two evaluations or exported configurations have the same weights and noise weight."""
    defaults = {"student_sha256": None, "noise_weight": 0.0}
    return all(first.get(key, default) == second.get(key, default) for key, default in defaults.items())


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The numeric columns of the training log, missing values as NaN; empty if there is no log.

    Raises:
        Refused: the log is damaged.
    """
    if not path.is_file():
        return {}
    import pyarrow

    try:
        table = read_parquet(read_bytes(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(f"{path} is damaged: delete it; `tokenleap run` writes it again from student/metrics") from error
    return {
        field.name: [math.nan if value is None else float(value) for value in table[field.name].to_pylist()]
        for field in table.schema
        if pyarrow.types.is_integer(field.type) or pyarrow.types.is_floating(field.type)
    }


def add_seconds(run_dir: RunDir, phase: str, seconds: float) -> None:
    """Add a phase's wall time to the time of earlier runs of the same command.

    Raises:
        Refused: seconds.json is damaged, or cannot be written.
        Failed: the disk is full.
    """
    before = run_dir.read_json(run_dir.seconds)
    after = {**before, phase: round(before.get(phase, 0.0) + seconds, 3)}
    commit_bytes(run_dir.seconds, (json.dumps(after, indent=2) + "\n").encode())


def timed_batches(rows: Sequence[Row]) -> list[int]:
    """The batch sizes with a measured time, ascending."""
    return sorted({int(size) for row in rows for size in row.get("seconds_per_image") or {}})


def seconds_per_image(row: Row, batch_size: int = 1, *, decoding: bool = False) -> float | None:
    """A method's time per image at a batch size, without or with decoding its tokens; None if it was not measured."""
    times = [row.get("seconds_per_image"), *([row.get("decode_seconds_per_image")] if decoding else [])]
    parts = [(by_size or {}).get(str(batch_size)) for by_size in times]
    return None if None in parts else float(sum(map(float, parts)))  # type: ignore[arg-type]


def speedup(row: Row, rows: Sequence[Row], batch_size: int = 1, *, decoding: bool = False) -> float | None:
    """The teacher's time divided by the method's time, without or with decoding; None if one was not measured."""
    teachers = (other for other in rows if other["method"] == "teacher")
    teacher = next((seconds_per_image(other, batch_size, decoding=decoding) for other in teachers), None)
    own = seconds_per_image(row, batch_size, decoding=decoding)
    return teacher / own if teacher and own else None


def describe_evaluation(evaluation: Mapping[str, Any]) -> str:
    """The conditions of an evaluation, such as `digits, 2,000 images, noise seed 0`."""
    seed, repeats = evaluation["seed"], evaluation.get("repeats", 1)
    seeds = f"noise seed {seed}" if repeats == 1 else f"noise seeds {seed} to {seed + repeats - 1}"
    reference = f", against {evaluation['reference']}" if evaluation.get("reference") else ""
    features = f", features {evaluation['features']}" if evaluation.get("features") else ""
    return f"{evaluation['protocol']}, {evaluation['num_images']:,} images, {seeds}{reference}{features}"


def reference_row_notes(evaluation: Mapping[str, Any]) -> list[str]:
    """Sentences about the rows of real images: what they are compared with, and why one is missing."""
    missing: Mapping[str, str] = evaluation.get("missing_rows", {})
    notes = []
    if "real_images" in evaluation:
        notes.append(f"real: {evaluation['real_images']:,} real images against {evaluation['real_against']}.")
    for reason in dict.fromkeys(missing.values()):
        rows = [row for row, why in missing.items() if why == reason]
        notes.append(f"No {'row' if len(rows) == 1 else 'rows'} {' and '.join(rows)}: {reason}.")
    return notes


def largest_timed_batch(rows: Sequence[Row]) -> int | None:
    """The largest batch size with a measured time; None if nothing was measured."""
    return max(timed_batches(rows), default=None)
