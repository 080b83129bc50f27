"""Stage one's driver: make what is missing, and say how it goes.

There is no state besides the data set itself: what a manifest row says is done is done, everything else is missing.
Running the same command again is the way to resume, to grow and to repair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from generate_pairs.cluster import pool
from generate_pairs.config import GenerateConfig, TeacherConfig
from generate_pairs.flow_map import default_num_steps
from generate_pairs.plan import work_unit
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from generate_pairs.worker import make_shard
from shards.errors import Failed, Refused, Stopped
from shards.manifest import (
    Manifest,
    create_dataset,
    dataset_exists,
    read_spec,
    refuse_other_spec,
)
from shards.record import PairSpec
from shards.rows import (
    JOINED_FILE,
    ROW_FOLDER,
    SHARD_FOLDER,
    ManifestRow,
    forget,
    read_row,
    shard_index,
)
from shards.storage import remove, remove_stale_temporaries, sha256_bytes
from shards.verify import verify

Report = Callable[[int, int, str], None]

STALE_SECONDS = 3600.0
"""A temporary file this old belongs to a writer that was killed: a living one takes seconds."""


@dataclass(frozen=True)
class GenerationPlan:
    """What a generation would do."""

    spec: PairSpec
    num_shards: int
    missing: tuple[int, ...]
    bytes_per_pair: int

    @property
    def num_pairs(self) -> int:
        """All pairs, the held-out ones too."""
        return self.num_shards * self.spec.pairs_per_shard

    @property
    def num_training_pairs(self) -> int:
        return self.num_pairs - self.spec.num_heldout

    def lines(self) -> list[str]:
        """The plan as people read it."""
        size = self.num_pairs * self.bytes_per_pair
        done = self.num_shards - len(self.missing)
        return [
            f"{self.num_training_pairs:,} training pairs and {self.spec.num_heldout:,} held out, "
            f"in {self.num_shards:,} shards of {self.spec.pairs_per_shard:,}",
            f"{self.bytes_per_pair:,} bytes a pair, {size / 1e6:,.1f} MB in all",
            f"{done:,} shards are done, {len(self.missing):,} to make",
        ]


@dataclass(frozen=True)
class GenerationSummary:
    """What a generation did."""

    num_shards_made: int
    num_pairs_made: int
    seconds: float

    @property
    def pairs_per_second(self) -> float:
        return self.num_pairs_made / self.seconds if self.seconds else 0.0


def pair_spec(config: GenerateConfig, loaded: LoadedTeacher) -> PairSpec:
    """The data set that a configuration asks for: everything that determines a pair, and how pairs are cut."""
    teacher = loaded.teacher
    settings = config.teacher.model_dump(exclude={"name"})
    codebook_VC = teacher.codebook_VC.float().cpu().numpy()
    solver_steps = config.pairs.solver_steps or default_num_steps(teacher.codebook_dim)
    lineage = {
        "teacher": {"name": loaded.name, "family": loaded.family, "sha256": loaded.sha256, **settings},
        "codebook_sha256": sha256_bytes(codebook_VC.tobytes()),
        "flow_map": {"scheme": "exponential Adams 3, relative stop", "solver_steps": solver_steps},
    }
    return PairSpec(
        lineage=lineage,
        tokens_per_step=teacher.layout.tokens_per_step,
        vocab_size=teacher.vocab_size,
        codebook_dim=teacher.codebook_dim,
        num_classes=teacher.num_classes,
        num_heldout=config.pairs.heldout,
        pairs_per_shard=config.pairs.pairs_per_shard,
        seed=config.pairs.seed,
        noise=config.pairs.noise,
    )


def plan_generation(config: GenerateConfig, root: Path) -> GenerationPlan:
    """What `generate` would do now; writes nothing.

    Raises:
        Refused: the folder holds pairs made with other settings, or the teacher cannot be found.
    """
    spec = pair_spec(config, load_teacher(config.teacher.name))
    num_shards = config.pairs.num_shards
    missing: Sequence[int] = range(num_shards)
    if dataset_exists(root):
        refuse_other_spec(root, spec)
        missing = Manifest.open(root).missing(num_shards)
    return GenerationPlan(spec, num_shards, tuple(missing), spec.bytes_per_pair)


def generate(
    config: GenerateConfig, root: Path, *, workers: int, report: Report, should_stop: Callable[[], bool]
) -> GenerationSummary:
    """Make every missing shard of a data set.

    Args:
        config: stage one's settings.
        root: the data set's folder; made if it is not there.
        workers: local worker processes; 0 computes in this one. The bytes are the same.
        report: called with (pairs done, pairs in all, note).
        should_stop: asked after every shard; finished shards stay.

    Raises:
        Refused: the folder holds pairs made with other settings.
        Failed: some shards could not be made; all others are.
        Stopped: `should_stop` said so.
    """
    plan = plan_generation(config, root)
    create_dataset(root, plan.spec)
    for folder in (root / SHARD_FOLDER, root / ROW_FOLDER):
        remove_stale_temporaries(folder, STALE_SECONDS)
    return make_shards(
        config, root, plan.spec, plan.missing, workers=workers, report=report, should_stop=should_stop
    )


def make_shards(
    config: GenerateConfig,
    root: Path,
    spec: PairSpec,
    shard_indices: Sequence[int],
    *,
    workers: int,
    report: Report,
    should_stop: Callable[[], bool],
) -> GenerationSummary:
    """Make these shards, on a pool of workers; arguments and errors as in `generate`."""
    began = time.monotonic()
    total = len(shard_indices) * spec.pairs_per_shard
    calls = [(root, spec, config, work_unit(index, spec.pairs_per_shard)) for index in shard_indices]
    made, failures = 0, list[str]()
    if calls:
        report(0, total, "")
        with pool(min(workers, len(calls))) as running:
            for future in running.run(make_shard, calls):
                error = future.exception()
                if error is None:
                    made += 1
                else:
                    failures.append(str(error) or repr(error))
                report(made * spec.pairs_per_shard, total, f"{len(failures)} failed" if failures else "")
                if should_stop():
                    raise Stopped(f"{made} of {len(calls)} missing shards are made and kept")
    if failures:
        raise Failed(
            f"{len(failures)} of {len(calls)} shards in {root} could not be made, the rest are done. "
            f"First reason: {failures[0]}. The same command makes what is missing"
        )
    return GenerationSummary(made, made * spec.pairs_per_shard, time.monotonic() - began)


def repair(
    root: Path,
    teacher_name: str | None = None,
    *,
    workers: int,
    report: Report,
    should_stop: Callable[[], bool],
) -> GenerationSummary:
    """Make again every shard that `verify` finds missing or broken, from the settings in dataset.json.

    Args:
        root: the data set's folder.
        teacher_name: where the teacher is found, if not under the name that the data set records.
        workers: as in `generate`.
        report: as in `generate`.
        should_stop: as in `generate`.

    Raises:
        Refused: dataset.json itself is damaged, or the teacher is not the one that made the pairs.
        Failed: some shards could not be made again.
    """
    findings = [finding for finding in verify(root) if finding.kind != "uncommitted"]
    for finding in findings:
        if finding.kind == "dataset":
            raise Refused(f"{finding.message}; without it nothing can be repaired: put dataset.json back")
    spec = read_spec(root)
    names = {Path(finding.where).stem for finding in findings if finding.kind != "joined"}
    rows = [row for name in sorted(names) if (row := _readable_row(root, name))]
    config = _config_of(spec, teacher_name, rows[0].batch_size if rows else None)
    if load_teacher(config.teacher.name).sha256 != spec.lineage["teacher"]["sha256"]:
        raise Refused(f"{config.teacher.name} is not the teacher that made {root}: its weights differ")
    for name in names:
        forget(root, name)
    if any(finding.kind == "joined" for finding in findings):
        remove(root / JOINED_FILE)
    indices = sorted(index for name in names if (index := shard_index(name)) is not None)
    return make_shards(config, root, spec, indices, workers=workers, report=report, should_stop=should_stop)


def _config_of(spec: PairSpec, teacher_name: str | None, batch_size: int | None) -> GenerateConfig:
    """The configuration that a data set was made with, as far as its pairs depend on it."""
    teacher = {key: spec.lineage["teacher"][key] for key in TeacherConfig.model_fields}
    pairs = {
        "num_heldout": spec.num_heldout,
        "pairs_per_shard": spec.pairs_per_shard,
        "seed": spec.seed,
        "solver_steps": spec.lineage["flow_map"]["solver_steps"],
        "noise": spec.noise,
    }
    if teacher_name is not None:
        teacher["name"] = teacher_name
    if batch_size is not None:
        pairs["batch_size"] = batch_size
    return GenerateConfig.model_validate({"teacher": teacher, "pairs": pairs})


def _readable_row(root: Path, name: str) -> ManifestRow | None:
    try:
        return read_row(root, name)
    except Failed:
        return None
