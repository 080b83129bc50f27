"""Upkeep of a data set from the settings that it records itself: make damaged shards again, and make more.

Nobody needs to know any more what was asked for when it was begun; only the teacher must be at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from generate_pairs.config import GenerateConfig, PairsConfig, TeacherConfig
from generate_pairs.generation.generate import generate, join_when_complete
from generate_pairs.generation.plan import refuse_fewer_pairs
from generate_pairs.generation.shard_jobs import GenerationSummary, generate_shards
from generate_pairs.generation.work_units import work_unit
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher, refuse_unknown
from shards.core.callbacks import Report, ShouldStop
from shards.core.errors import Failed, Refused
from shards.dataset.manifest import read_spec
from shards.dataset.manifest_row import (
    JOINED_FILE,
    ROW_FOLDER,
    ManifestRow,
    forget,
    read_joined,
    read_row,
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
    """Make again every shard that `verify` finds missing or broken, from the settings in dataset.json.

    A damaged shard stays as it is until the new one is made: stopped half-way, the damage is still found. Where
    a row says what was committed, equal bytes are proof, and the row stays; see `shards/dataset/replace_shard.py`.

    Args:
        root: the data set's folder.
        teacher_name: where the teacher is found, if not under the name that the data set records.
        findings: what `verify` just said, if it was asked; else it is asked now.
        workers: as in `generate`.
        report: called with (pairs made again, pairs to make again, note).
        should_stop: as in `generate`.

    Returns:
        What was done; `replaced` tells, shard by shard, how the new bytes compare with the old.

    Raises:
        Refused: dataset.json itself or the list of captions is damaged, or the teacher is not the one that made the
            pairs.
        Failed: some shards could not be made again.
    """
    refuse_web(root, "repair")
    found = verify(root) if findings is None else findings
    damage = [finding for finding in found if finding.kind != "uncommitted"]
    for finding in damage:
        if finding.is_of_every_pair:
            remedy = ": put dataset.json back" if finding.kind == "dataset" else ""
            raise Refused(f"{finding.message}; without it nothing can be repaired{remedy}")
    spec = read_spec(root)
    teacher, _ = recorded_teacher(root, spec, teacher_name, "repair")
    names = {PurePath(finding.where).stem for finding in damage if finding.kind != "joined"}
    indices = sorted(index for name in names if (index := shard_index(name)) is not None)
    rows = _rows_on_record(root, spec)
    units = [
        work_unit(
            index,
            spec.pairs_per_shard,
            _nearest_batch_size(rows, index),
            replaces=True,
            committed=rows.get(index),
        )
        for index in indices
    ]
    summary = generate_shards(
        teacher,
        root,
        spec,
        units,
        num_pairs=len(units) * spec.pairs_per_shard,
        workers=workers,
        report=report,
        should_stop=should_stop,
    )
    # Last: until then the joined table may be the only proof of what a lost row vouched for.
    for name in names - {shard_name(index) for index in indices}:
        forget(root, name)
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
    """Make a data set as large as asked: what `generate` would do with its settings and this number of pairs.

    Args:
        root: the data set's folder.
        num_pairs: training pairs that it shall hold, rounded up to full shards.
        teacher_name: as in `repair`, and so are the others.

    Raises:
        Refused: it holds more pairs, or the teacher is not the one that made them.
        Failed, Stopped: as `generate`.
    """
    spec = read_spec(root)
    teacher, _ = recorded_teacher(root, spec, teacher_name, "extend")
    rows = _rows_on_record(root, spec)
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
    """The teacher that made a data set, where it is now, and its settings, sampling as it did.

    Args:
        root: the data set's folder.
        spec: its spec.
        teacher_name: where the teacher is found, if not under the name that the data set records.
        command: of `tokenleap shards`, for the message.

    Raises:
        Refused: it is not there, or another one is.
    """
    made_by = spec.lineage["teacher"]
    settings = {key: made_by[key] for key in TeacherConfig.model_fields}
    way = f"`tokenleap shards {command} {root} --teacher FILE` tells where it is"
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
    return config, loaded


def _rows_on_record(root: Location, spec: PairSpec) -> dict[int, ManifestRow]:
    """The sound row of every shard that has one, by its place: its own, or what the joined table holds of it."""
    rows = dict(_joined_rows(root))
    for file_name in list_names(root / ROW_FOLDER, ".parquet"):
        name = PurePath(file_name).stem
        row = _readable_row(root, name)
        if row is not None and row_problem(spec, row) is None:
            rows[name] = row
    return {
        index: row
        for name, row in rows.items()
        if (index := shard_index(name)) is not None and row_problem(spec, row) is None
    }


def _nearest_batch_size(rows: Mapping[int, ManifestRow], index: int) -> int:
    """A shard's batch size; where none is on record, that of the nearest shard, which one command made, likely."""
    if not rows:
        return PairsConfig().batch_size
    return rows[min(rows, key=lambda other: abs(other - index))].batch_size


def _joined_rows(root: Location) -> Mapping[str, ManifestRow]:
    try:
        return read_joined(root)
    except (Refused, Failed):
        return {}


def _readable_row(root: Location, name: str) -> ManifestRow | None:
    try:
        return read_row(root, name)
    except (Refused, Failed):
        return None
