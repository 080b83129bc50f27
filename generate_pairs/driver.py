"""Stage one's driver: plan, make what is missing, make again what is damaged.

There is no state besides the data set itself: what a manifest row says is done is done, everything else is missing.
Running the same command again is the way to resume and to grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from generate_pairs.config import GenerateConfig, PairsConfig, TeacherConfig
from generate_pairs.flow_map import default_num_steps
from generate_pairs.making import GenerationSummary, make_shards
from generate_pairs.plan import Task, work_unit
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher, refuse_unknown
from generate_pairs.teachers.filtering import SamplingSettings
from shards.errors import Failed, Refused
from shards.manifest import Manifest, create_dataset, dataset_exists, read_spec, refuse_other_spec
from shards.record import PairSpec
from shards.reporting import Report, ShouldStop, Tell
from shards.rows import (
    JOINED_FILE,
    ROW_FOLDER,
    SHARD_FOLDER,
    ManifestRow,
    forget,
    read_joined,
    read_row,
    shard_index,
    shard_name,
)
from shards.storage import list_names, remove, remove_stale_temporaries, sha256_bytes
from shards.verify import Finding, verify

STALE_SECONDS = 3600.0
"""A temporary file this old belongs to a writer that was killed: a living one takes seconds."""


@dataclass(frozen=True)
class GenerationPlan:
    """What a generation would do; `image_shape` is that of the images the tokens stand for."""

    spec: PairSpec
    num_shards: int
    missing: tuple[int, ...]
    bytes_per_pair: int
    image_shape: tuple[int, int, int]

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
        Refused: the folder holds pairs made with other settings, the teacher cannot be found, or it cannot
            sample as it is told to.
    """
    loaded = load_teacher(config.teacher.name)
    refuse_captions(loaded)
    refuse_unknown_sampling(config, loaded)
    spec = pair_spec(config, loaded)
    num_shards = config.pairs.num_shards
    missing: Sequence[int] = range(num_shards)
    if dataset_exists(root):
        refuse_other_spec(root, spec)
        missing = Manifest.open(root).missing(num_shards)
    image_shape = loaded.teacher.tokenizer.image_shape
    return GenerationPlan(spec, num_shards, tuple(missing), spec.bytes_per_pair, image_shape)


def refuse_captions(loaded: LoadedTeacher) -> None:
    """Confirms that a teacher is conditioned on classes.

    Raises:
        Refused: it is conditioned on text.
    """
    if getattr(loaded.teacher.transformer.config, "condition", "class") == "text":
        raise Refused(
            f"teacher.name: {loaded.name} draws images for captions, and pairs are made for class labels only: its "
            "logits and its tokenizer are here, its pairs are not"
        )


def refuse_unknown_sampling(config: GenerateConfig, loaded: LoadedTeacher) -> None:
    """Confirms that the teacher's family knows every sampling setting that is not off.

    Raises:
        Refused: VAR is given a temperature.
    """
    flat_1V = torch.zeros(1, loaded.teacher.vocab_size, device=loaded.teacher.codebook_VC.device)
    try:
        loaded.teacher.filter(flat_1V, SamplingSettings.of(config.teacher.model_dump()))
    except ValueError as error:
        raise Refused(f"teacher.{error}") from error


def refuse_fewer_pairs(config: GenerateConfig, root: Path) -> None:
    """Confirms that a data set does not hold more shards than are asked for: it grows, and never shrinks.

    `generate` itself takes no offence: a run may be resumed with its own number after its pairs were extended.

    Raises:
        Refused: it holds more; tells the way to a smaller training.
    """
    if not dataset_exists(root):
        return
    manifest = Manifest.open(root)
    spec, asked = manifest.spec, config.pairs
    # Pairs that are cut otherwise are other pairs: that is for the plan to say, key by key.
    same_cut = (spec.pairs_per_shard, spec.num_heldout) == (asked.pairs_per_shard, asked.heldout)
    held = manifest.num_pairs - spec.num_heldout
    if same_cut and held > asked.num_shards * spec.pairs_per_shard - spec.num_heldout:
        raise Refused(
            f"pairs.num_pairs is {asked.num_pairs}, but {root} already holds {held} training pairs: ask for as "
            "many or more. To learn from fewer of them, leave them there and use `onestep distill --size`"
        )


def generate(
    config: GenerateConfig,
    root: Path,
    *,
    workers: int,
    report: Report,
    should_stop: ShouldStop,
    task: Task | None = None,
    deadline: float | None = None,
    tell: Tell = lambda _: None,
) -> GenerationSummary:
    """Make every missing shard of a data set.

    Args:
        config: stage one's settings; `cluster` says where the shards are made. The bytes are the same.
        root: the data set's folder; made if it is not there.
        workers: local worker processes; 0 computes in this one. Without meaning for another cluster.
        report: called with (pairs done, by earlier runs too, pairs in all, note).
        should_stop: asked before every shard; finished shards stay, and those under way are finished.
        task: make this share of the shards only, as one of several processes that know nothing of each other.
        deadline: when, by `time.monotonic`, the last shard should have ended: none is begun that would end later.
        tell: hears once where the shards are made.

    Raises:
        Refused: the folder holds pairs made with other settings, or cannot be written to.
        Failed: some shards could not be made; finished ones stay.
        Stopped: `should_stop` said so.
        OutOfTime: the deadline is near.
    """
    plan = plan_generation(config, root)
    create_dataset(root, plan.spec)
    for folder in (root / SHARD_FOLDER, root / ROW_FOLDER):
        remove_stale_temporaries(folder, STALE_SECONDS)
    size = plan.spec.pairs_per_shard
    share = task or Task(0, 1)
    units = [work_unit(index, size, config.pairs.batch_size) for index in plan.missing if share.owns(index)]
    return make_shards(
        config.teacher,
        root,
        plan.spec,
        units,
        num_pairs=sum(map(share.owns, range(plan.num_shards))) * size,
        workers=workers,
        report=report,
        should_stop=should_stop,
        # Its worker is a process of its own, as one of a cluster is, and dies as alone.
        cluster=config.cluster.logging_into(root) if task else config.cluster,
        deadline=deadline,
        tell=tell,
    )


def repair(
    root: Path,
    teacher_name: str | None = None,
    *,
    findings: Sequence[Finding] | None = None,
    workers: int,
    report: Report,
    should_stop: ShouldStop,
) -> GenerationSummary:
    """Make again every shard that `verify` finds missing or broken, from the settings in dataset.json.

    A damaged shard stays as it is until the new one is made: stopped half-way, the damage is still found.

    Args:
        root: the data set's folder.
        teacher_name: where the teacher is found, if not under the name that the data set records.
        findings: what `verify` just said, if it was asked; else it is asked now.
        workers: as in `generate`.
        report: called with (pairs made again, pairs to make again, note).
        should_stop: as in `generate`.

    Raises:
        Refused: dataset.json itself is damaged, or the teacher is not the one that made the pairs.
        Failed: some shards could not be made again.
    """
    found = verify(root) if findings is None else findings
    damage = [finding for finding in found if finding.kind != "uncommitted"]
    for finding in damage:
        if finding.kind == "dataset":
            raise Refused(f"{finding.message}; without it nothing can be repaired: put dataset.json back")
    spec = read_spec(root)
    teacher = _maker_of(root, spec, teacher_name)
    names = {Path(finding.where).stem for finding in damage if finding.kind != "joined"}
    indices = sorted(index for name in names if (index := shard_index(name)) is not None)
    batch_sizes = _batch_sizes(root, spec)
    for name in names - {shard_name(index) for index in indices}:
        forget(root, name)
    if any(finding.kind == "joined" for finding in damage):
        remove(root / JOINED_FILE)
    units = [
        work_unit(index, spec.pairs_per_shard, _nearest(batch_sizes, index), replaces=True)
        for index in indices
    ]
    return make_shards(
        teacher,
        root,
        spec,
        units,
        num_pairs=len(units) * spec.pairs_per_shard,
        workers=workers,
        report=report,
        should_stop=should_stop,
    )


def _maker_of(root: Path, spec: PairSpec, teacher_name: str | None) -> TeacherConfig:
    """The teacher that made a data set, where it is now, sampling as it did.

    Raises:
        Refused: it is not there, or another one is.
    """
    made_by = spec.lineage["teacher"]
    settings = {key: made_by[key] for key in TeacherConfig.model_fields}
    way = f"`onestep shards repair {root} --teacher FILE` tells where it is"
    config = TeacherConfig.model_validate(settings | {"name": teacher_name or made_by["name"]})
    if teacher_name is None:
        try:
            refuse_unknown(config.name)
        except Refused as error:
            raise Refused(f"{root} was made by a teacher that is not here: {error}. {way}") from error
    loaded = load_teacher(config.name)
    if loaded.sha256 != made_by["sha256"]:
        raise Refused(
            f"{config.name} is not the teacher that made {root}: its sha256 is {loaded.sha256[:12]}, that "
            f"one's {made_by['sha256'][:12]}; {way}"
        )
    return config


def _batch_sizes(root: Path, spec: PairSpec) -> dict[int, int]:
    """The batch size of every shard that is on record, by its place: in its own row, or in the joined table."""
    rows = dict(_joined_rows(root))
    for file_name in list_names(root / ROW_FOLDER, ".parquet"):
        name = Path(file_name).stem
        if (row := _readable_row(root, name)) is not None:
            rows[name] = row
    return {
        index: row.batch_size
        for name, row in rows.items()
        if row.fingerprint == spec.fingerprint and (index := shard_index(name)) is not None
    }


def _nearest(batch_sizes: Mapping[int, int], index: int) -> int:
    """A shard's batch size; where none is on record, that of the nearest shard, which one command made, likely."""
    if not batch_sizes:
        return PairsConfig().batch_size
    return batch_sizes[min(batch_sizes, key=lambda other: abs(other - index))]


def _joined_rows(root: Path) -> Mapping[str, ManifestRow]:
    try:
        return read_joined(root)
    except (Refused, Failed):
        return {}


def _readable_row(root: Path, name: str) -> ManifestRow | None:
    try:
        return read_row(root, name)
    except (Refused, Failed):
        return None
