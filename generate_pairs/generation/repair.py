"""Repairs and extends a data set with the settings that it records; only the teacher's file is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import PurePath

from generate_pairs.config import GenerateConfig, PairsConfig, TeacherConfig
from generate_pairs.generation.generate import generate, join_when_complete
from generate_pairs.generation.plan import refuse_fewer_pairs
from generate_pairs.generation.shard_jobs import GenerationSummary, generate_shards
from generate_pairs.generation.work_units import WorkUnit
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher, refuse_unknown
from shards.core.callbacks import Report, ShouldStop
from shards.core.errors import Failed, Refused
from shards.dataset.manifest import read_spec
from shards.dataset.manifest_row import (
    JOINED_FILE,
    ROW_FOLDER,
    ManifestRow,
    read_joined,
    read_row,
    remove_row,
    row_problem,
    shard_index,
    shard_name,
)
from shards.dataset.verify import Finding, verify
from shards.format.spec import PairSpec
from shards.storage.files import list_names, remove
from shards.storage.paths import Location, refuse_web


def repair(
    root: Location,
    teacher_name: str | None = None,
    *,
    findings: Sequence[Finding] | None = None,
    workers: int,
    report: Report,
    should_stop: ShouldStop,
) -> GenerationSummary:
    """Regenerate every shard that `verify` reports as missing or broken, with the settings in dataset.json.

    A damaged shard is kept until its replacement is complete, so an interrupted repair leaves the damage detectable.
    If a shard's row is known, equal bytes prove the replacement and the row is kept; see
    `shards/dataset/replace_shard.py`.

    Args:
        teacher_name: name or file of the teacher, if it differs from the recorded name.
        findings: the result of `verify`, if the caller has it; by default `verify` runs now.
        report: called with (pairs regenerated, pairs to regenerate, note).

    Raises:
        Refused: dataset.json or the list of captions is damaged, or the teacher is not the one that made the pairs.
        Failed: some shards could not be regenerated.
    """
    refuse_web(root, "repair")
    damage = [each for each in (verify(root) if findings is None else findings) if each.kind != "uncommitted"]
    for finding in damage:
        if finding.affects_all_pairs:
            remedy = ": restore dataset.json" if finding.kind == "dataset" else ""
            raise Refused(f"{finding.message}; without it nothing can be repaired{remedy}")
    spec = read_spec(root)
    teacher, _ = recorded_teacher(root, spec, teacher_name, "repair")
    names = {PurePath(finding.where).stem for finding in damage if finding.kind != "joined"}
    indices = sorted(index for name in names if (index := shard_index(name)) is not None)
    rows, size = _valid_rows(root, spec), spec.pairs_per_shard
    summary = generate_shards(
        teacher,
        root,
        spec,
        [WorkUnit(index, size, _nearest_batch_size(rows, index), True, rows.get(index)) for index in indices],
        num_pairs=len(indices) * size,
        workers=workers,
        report=report,
        should_stop=should_stop,
    )
    # Last: until now the joined table may be the only copy of a lost row.
    for name in names - {shard_name(index) for index in indices}:
        remove_row(root, name)
    if any(finding.kind == "joined" for finding in damage):
        remove(root / JOINED_FILE)
    join_when_complete(root, max(indices, default=-1) + 1)
    return summary


def extend(
    root: Location,
    num_pairs: int,
    teacher_name: str | None = None,
    *,
    workers: int,
    report: Report,
    should_stop: ShouldStop,
) -> GenerationSummary:
    """Extend a data set: `generate` with the recorded settings and this number of pairs.

    Args:
        num_pairs: training pairs in total, rounded up to full shards.
        teacher_name: as in `repair`, like the remaining arguments.

    Raises:
        Refused: the data set has more pairs, or the teacher is not the one that made them.
        Failed, Stopped: as `generate`.
    """
    spec = read_spec(root)
    teacher, _ = recorded_teacher(root, spec, teacher_name, "extend")
    rows = _valid_rows(root, spec)
    pairs = PairsConfig(
        num_pairs=num_pairs,
        num_heldout=spec.num_heldout,
        pairs_per_shard=spec.pairs_per_shard,
        batch_size=_nearest_batch_size(rows, max(rows, default=0)),
        seed=spec.seed,
        solver_steps=spec.lineage["flow_map"]["solver_steps"],
        noise=spec.noise,
    )
    config = GenerateConfig(teacher=teacher, pairs=pairs)
    refuse_fewer_pairs(config, root)
    return generate(config, root, workers=workers, report=report, should_stop=should_stop)


def recorded_teacher(
    root: Location, spec: PairSpec, teacher_name: str | None, command: str
) -> tuple[TeacherConfig, LoadedTeacher]:
    """The teacher that made a data set, with its recorded sampling settings and its present location.

    Args:
        teacher_name: name or file of the teacher, if it differs from the recorded name.
        command: of `tokenleap shards`, for the message.

    Raises:
        Refused: the teacher is missing, or has another sha256.
    """
    recorded = spec.lineage["teacher"]
    settings = {key: recorded[key] for key in TeacherConfig.model_fields}
    remedy = f"give its file with `tokenleap shards {command} {root} --teacher FILE`"
    config = TeacherConfig.model_validate(settings | {"name": teacher_name or recorded["name"]})
    if teacher_name is None:
        try:
            refuse_unknown(config.name)
        except Refused as error:
            raise Refused(f"the teacher that made {root} was not found: {error}; {remedy}") from error
    loaded = load_teacher(config.name)
    if loaded.sha256 != recorded["sha256"]:
        raise Refused(
            f"{config.name} is not the teacher that made {root}: its sha256 is {loaded.sha256[:12]}, the "
            f"recorded one {recorded['sha256'][:12]}; {remedy}"
        )
    return config, loaded


def _valid_rows(root: Location, spec: PairSpec) -> dict[int, ManifestRow]:
    """The valid row of each shard by index, from the shard's row file or else from the joined table."""
    rows: dict[int, ManifestRow] = {}

    def add(name: str, row: ManifestRow | None) -> None:
        index = shard_index(name)
        if index is not None and row is not None and row_problem(spec, row) is None:
            rows[index] = row

    with suppress(Refused, Failed):
        for name, row in read_joined(root).items():
            add(name, row)
    for file_name in list_names(root / ROW_FOLDER, ".parquet"):
        name = PurePath(file_name).stem
        with suppress(Refused, Failed):
            add(name, read_row(root, name))
    return rows


def _nearest_batch_size(rows: Mapping[int, ManifestRow], index: int) -> int:
    """The batch size of a shard, or of the nearest shard with a row: one command probably generated both."""
    if not rows:
        return PairsConfig().batch_size
    return rows[min(rows, key=lambda other: abs(other - index))].batch_size
