"""The ablation of an out folder: what is to be trained, trained wherever the cluster says, and gathered in one table."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

from distill.checkpoint import KEPT
from distill.checks import check_distillation, check_evaluation
from distill.student import build_network
from generate_pairs.cluster import InProcess, Pool, pool
from generate_pairs.hand_out import HandOut
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.checkpoints import LoadedTeacher
from pipeline.cell import CellDir, run_cell
from pipeline.config import RunConfig, to_toml
from pipeline.fields import leaves
from pipeline.grid import Cell, Match, look_interval, swept_values
from pipeline.run_dir import RunDir, check
from shards.dotted import flat
from shards.errors import Refused, Stopped
from shards.locations import Location
from shards.manifest import Manifest
from shards.reporting import Report, ShouldStop, Tell
from shards.settings import FREE
from shards.storage import commit_bytes

SCHEMA_VERSION = 1
TABLE_FILE = "ablation.parquet"

_AXES = {"pairs.num_pairs", "train.seed", "student.timesteps"}
"""Keys in which the cells of one folder may differ from its base, besides those that are swept."""

_ONE_AT_A_TIME = threading.Lock()
"""A training seeds the process's generator and sets its threads: threads of a worker take turns."""


@dataclass(frozen=True)
class Ablation:
    """What is asked for.

    Attributes:
        root: the ablation's folder.
        pairs: the data set that all cells learn from.
        base: what the cells have in common.
        cells: what is to be trained, in this order.
        match: whether cells have as many steps, or as many passes.
        every: steps between looks; None for a tenth of a cell's steps.
    """

    root: Path
    pairs: Location
    base: RunConfig
    cells: tuple[Cell, ...]
    match: Match
    every: int | None

    @property
    def config_file(self) -> Path:
        return self.root / "config.toml"

    @property
    def identity_file(self) -> Path:
        return self.root / "ablation.json"

    @property
    def table_file(self) -> Path:
        return self.root / TABLE_FILE

    @property
    def cells_folder(self) -> Path:
        return self.root / "cells"

    def cell_dir(self, cell: Cell) -> CellDir:
        """Where a cell lies."""
        return CellDir(self.cells_folder / cell.name)

    def every_of(self, cell: Cell) -> int:
        """Steps between looks at a cell."""
        return look_interval(cell.config, self.every)

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell needs no more work."""
        return self.cell_dir(cell).is_finished(cell.config)


def refuse_ablation(ablation: Ablation, loaded: LoadedTeacher) -> None:
    """Refuse what cannot be done, before any work; writes nothing.

    Raises:
        Refused: sizes that are not there or too small, settings that do not fit the teacher, a folder that holds
            another ablation or cannot hold this one.
    """
    manifest = Manifest.open(ablation.pairs)
    layout, image_shape = TokenLayout(manifest.spec.tokens_per_step), loaded.teacher.tokenizer.image_shape
    available = manifest.view().size
    check_evaluation(ablation.base.evaluation, image_shape)
    for cell in ablation.cells:
        _refuse_size(cell, available, manifest)
        try:
            check_distillation(cell.config.distill, layout, manifest.spec.num_heldout)
        except Refused as refusal:
            raise Refused(f"{cell.name}: {refusal}") from refusal
        every = ablation.every_of(cell)
        if every > cell.config.train.num_steps:
            raise Refused(
                f"--every is {every}, and {cell.name} has {cell.config.train.num_steps} steps: look at least once"
            )
    _refuse_other_ablation(ablation, manifest)
    for cell in ablation.cells:
        check(ablation.cell_dir(cell).root, cell.config)
    _refuse_small_disk(ablation, loaded)


def run_ablation(
    ablation: Ablation, *, workers: int, report: Report, should_stop: ShouldStop, tell: Tell
) -> list[tuple[str, str]]:
    """Train every cell that is not finished, and write the table of all that are.

    Args:
        ablation: what is asked for, and found possible by `refuse_ablation`.
        workers: local worker processes; 0 trains in this one. Without meaning for another cluster.
        report: called with (steps done, steps in all, the cell under way).
        should_stop: asked after every step in this process; cells on workers go on from their last checkpoints.
        tell: hears once where the cells are trained.

    Returns:
        The cells that failed, each with the reason; the others are done.

    Raises:
        Refused: the folder cannot be written to.
        Failed: the cluster was lost.
        Stopped: `should_stop` said so; what is finished is kept.
    """
    _claim(ablation)
    todo = [cell for cell in ablation.cells if not ablation.is_finished(cell)]
    failures: list[tuple[str, str]] = []
    if todo:
        progress = _Progress(ablation, todo, report)
        hand_out = HandOut(todo, should_stop, waits=False)
        cluster = ablation.base.cluster.logging_into(ablation.root)
        asked = cluster.jobs if cluster.scheduler == "slurm" else workers
        with pool(cluster, min(asked, len(todo)), tell) as running:
            for cell, future in running.run(_work(ablation, running, progress, should_stop), hand_out):
                if (reason := _failure(future)) is not None:
                    failures.append((cell.name, reason))
                progress.ended(cell)
        if hand_out.is_stopped:
            left = sum(not ablation.is_finished(cell) for cell in ablation.cells)
            raise Stopped(f"{len(ablation.cells) - left} of {len(ablation.cells)} cells are done and kept")
    write_table(ablation)
    return failures


def write_table(ablation: Ablation) -> pyarrow.Table:
    """Gather the numbers of every finished cell in the folder, those of earlier commands too.

    Raises:
        Refused: a cell is damaged or another ablation's, or the folder cannot be written to.
    """
    found = read_cells(ablation)
    swept = sorted({key for cell in found for key in swept_values(ablation.base, cell.config)})
    columns: list[tuple[str, Any]] = [
        ("cell", pyarrow.string()),
        ("size", pyarrow.int64()),
        ("seed", pyarrow.int64()),
        ("timesteps", pyarrow.string()),
        *((key, pyarrow.string()) for key in swept),
        ("step", pyarrow.int64()),
        ("epoch", pyarrow.float64()),
        ("pairs_seen", pyarrow.int64()),
        ("method", pyarrow.string()),
        ("metric", pyarrow.string()),
        ("value", pyarrow.float64()),
        ("protocol", pyarrow.string()),
    ]
    rows = [row for cell in found for row in _rows(ablation, cell, swept)]
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(columns))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    commit_bytes(ablation.table_file, buffer.getvalue())
    return table


def read_cells(ablation: Ablation) -> list[Cell]:
    """All finished cells in the folder, by timesteps, swept values, size and seed.

    Raises:
        Refused: a cell is damaged or another ablation's.
    """
    return sorted(_finished_cells(ablation), key=lambda cell: _place(ablation.base, cell))


def train_elsewhere(pairs: Location, cells_folder: Path, every: int | None, cell: Cell) -> None:
    """Train a cell on a worker, which tells nobody how far it is. Raises as `run_cell`."""
    with _ONE_AT_A_TIME:
        run_cell(
            cell.config,
            pairs,
            cells_folder / cell.name,
            look_interval(cell.config, every),
            report=lambda *_: None,
            should_stop=lambda: False,
        )


class _Progress:
    """Steps of the whole grid: those of finished cells, and of the one that trains in this process."""

    def __init__(self, ablation: Ablation, todo: list[Cell], report: Report) -> None:
        self.total = sum(cell.config.train.num_steps for cell in ablation.cells)
        self.done = self.total - sum(cell.config.train.num_steps for cell in todo)
        self.report = report
        report(self.done, self.total, "")

    def ended(self, cell: Cell) -> None:
        self.done += cell.config.train.num_steps
        self.report(self.done, self.total, cell.name)

    def of(self, cell: Cell) -> Report:
        return lambda done, _, note: self.report(
            self.done + done, self.total, ", ".join(filter(None, [cell.name, note]))
        )


def _work(
    ablation: Ablation, running: Pool, progress: _Progress, should_stop: ShouldStop
) -> Callable[[Cell], None]:
    """What trains a cell: here it tells every step and stops after any, elsewhere it travels without them."""
    if not isinstance(running, InProcess):
        return partial(
            train_elsewhere, ablation.pairs.absolute(), ablation.cells_folder.absolute(), ablation.every
        )

    def here(cell: Cell) -> None:
        run_cell(
            cell.config,
            ablation.pairs,
            ablation.cell_dir(cell).root,
            ablation.every_of(cell),
            report=progress.of(cell),
            should_stop=should_stop,
        )

    return here


def _failure(future: Future[Any]) -> str | None:
    """Why a cell failed; None where it did not.

    Raises:
        Stopped: it was asked to.
    """
    match future.exception():
        case None:
            return None
        case Stopped() as stopped:
            raise stopped
        case error:
            return str(error) or repr(error)


def _finished_cells(ablation: Ablation) -> Iterator[Cell]:
    folders = sorted(ablation.cells_folder.iterdir()) if ablation.cells_folder.is_dir() else []
    for folder in folders:
        cell = CellDir(folder)
        if not cell.run.config.is_file():
            continue
        config = cell.run.read_config()
        if differing := _differing(ablation, config, swept=True):
            raise Refused(f"{folder} is a cell of another ablation ({'; '.join(differing)}): take it away")
        if cell.is_finished(config):
            yield Cell(folder.name, config)


def _rows(ablation: Ablation, cell: Cell, swept: list[str]) -> Iterator[dict[str, Any]]:
    folder, train = ablation.cell_dir(cell), cell.config.train
    values = flat(cell.config.model_dump())
    for step in folder.steps():
        for number in folder.numbers(step):
            yield {
                "cell": cell.name,
                "size": cell.size,
                "seed": train.seed,
                "timesteps": ",".join(map(str, cell.config.student.timesteps)),
                **{key: str(values[key]) for key in swept},
                "step": step,
                "epoch": step * train.batch_size / cell.size,
                "pairs_seen": step * train.batch_size,
                **number,
            }


def _place(base: RunConfig, cell: Cell) -> tuple[Any, ...]:
    swept = sorted((key, str(value)) for key, value in swept_values(base, cell.config).items())
    return cell.config.student.timesteps, swept, cell.size, cell.config.train.seed


def _claim(ablation: Ablation) -> None:
    """Found an ablation in its folder, or go on with it."""
    spec = Manifest.open(ablation.pairs).spec
    identity = {"schema_version": SCHEMA_VERSION, "fingerprint": spec.fingerprint, **_manner(ablation)}
    commit_bytes(ablation.config_file, to_toml(ablation.base).encode(), exclusive=True)
    commit_bytes(ablation.identity_file, (json.dumps(identity, indent=2) + "\n").encode(), exclusive=True)


def _manner(ablation: Ablation) -> Mapping[str, Any]:
    return {"match": ablation.match, "every": ablation.every}


def _refuse_other_ablation(ablation: Ablation, manifest: Manifest) -> None:
    if not ablation.config_file.is_file():
        strange = sorted(entry.name for entry in ablation.root.iterdir()) if ablation.root.is_dir() else []
        if visible := [name for name in strange if not name.startswith(".")]:
            raise Refused(
                f"{ablation.root} is not an ablation (it has no {ablation.config_file.name}) and holds "
                f"{', '.join(visible[:3])}: give another --out"
            )
        return
    differing = _differing(ablation, RunDir(ablation.root).read_config(), swept=False)
    there = RunDir(ablation.root).read_json(ablation.identity_file)
    asked = {"fingerprint": manifest.spec.fingerprint, **_manner(ablation)}
    differing += [
        f"{'the pairs' if key == 'fingerprint' else '--' + key}: there {there[key]}, asked {value}"
        for key, value in asked.items()
        if key in there and there[key] != value
    ]
    if differing:
        raise Refused(
            f"{ablation.root} holds another ablation: {'; '.join(differing)}. Give the original values to go on with "
            "it (sizes, seeds, timesteps and swept values may be added), or another --out"
        )


def _differing(ablation: Ablation, there: RunConfig, *, swept: bool) -> list[str]:
    """The keys that an ablation's configurations must have in common and that differ, each in words.

    With `swept` those of a cell, which may differ in the keys of stage two.
    """
    before, after = flat(there.model_dump()), flat(ablation.base.model_dump())
    free = _AXES if ablation.match == "steps" else _AXES - {"pairs.num_pairs"}
    free = _AXES if swept else free
    return [
        f"{key}: there {before[key]}, asked {after[key]}"
        for key, field in leaves(RunConfig)
        if field.json_schema_extra != FREE
        and key not in free
        and not (swept and key.partition(".")[0] in {"student", "train"})
        and before[key] != after[key]
    ]


def _refuse_size(cell: Cell, available: int, manifest: Manifest) -> None:
    size, batch_size, num_classes = cell.size, cell.config.train.batch_size, manifest.spec.num_classes
    if size > available:
        raise Refused(
            f"--sizes: {size} pairs are asked for, and {manifest.root} holds {available} for training; "
            f"`onestep shards extend {manifest.root} --num-pairs {size}` makes the rest"
        )
    for least, what in ((batch_size, "train.batch_size"), (num_classes, "the number of classes")):
        if size < least:
            raise Refused(f"--sizes: {size} pairs are fewer than {least}, {what}: ask for as many at least")


def _refuse_small_disk(ablation: Ablation, loaded: LoadedTeacher) -> None:
    """Weights, averages and two moments in each checkpoint that stays, and the export: for every cell to come."""
    with torch.device("meta"):
        network = build_network(loaded.family, loaded.teacher.transformer.config, loaded.teacher.codebook_dim)
    weights = sum(4 * parameter.numel() for parameter in network.parameters())
    decoder = sum(tensor.nbytes for tensor in loaded.teacher.tokenizer.decoder_state().values())
    todo = sum(not ablation.is_finished(cell) for cell in ablation.cells)
    needed = todo * (4 * KEPT * weights + weights + decoder) + (4 * weights if todo else 0)
    place = next(folder for folder in (ablation.root, *ablation.root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise Refused(
            f"the cells to come ({todo}) take about {needed / 1e6:,.0f} MB, and {place} has {free / 1e6:,.0f} MB left: "
            "free some, choose another --out, or ask for fewer cells"
        )
