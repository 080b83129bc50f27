"""Training the cells of an ablation: here, on local workers or on a cluster, each from where it stands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from generate_pairs.cluster.base import InProcess, Pool
from generate_pairs.cluster.open_pool import pool
from generate_pairs.cluster.work_queue import WorkQueue
from pipeline.ablation.ablation import Ablation, claim_ablation
from pipeline.ablation.cell import run_cell
from pipeline.ablation.collect import write_table
from pipeline.ablation.grid import Cell, eval_interval
from shards.core.callbacks import Notify, Report, ShouldStop
from shards.core.errors import Stopped
from shards.storage.paths import Location

_ONE_AT_A_TIME = threading.Lock()
"""A training seeds the process's generator and sets its threads: threads of a worker take turns."""


def run_ablation(
    ablation: Ablation, *, workers: int, report: Report, should_stop: ShouldStop, notify: Notify
) -> list[tuple[str, str]]:
    """Train every cell that is not finished, and write the table of all that are.

    Args:
        ablation: what is asked for, and found possible by `refuse_ablation`.
        workers: local worker processes; 0 trains in this one. Without meaning for another cluster.
        report: called with (steps done, steps in all, the cell under way).
        should_stop: asked after every step in this process; cells on workers go on from their last checkpoints.
        notify: hears once where the cells are trained.

    Returns:
        The cells that failed, each with the reason; the others are done.

    Raises:
        Refused: the folder cannot be written to.
        Failed: the cluster was lost.
        Stopped: `should_stop` said so; what is finished is kept.
    """
    claim_ablation(ablation)
    todo = [cell for cell in ablation.cells if not ablation.is_finished(cell)]
    failures: list[tuple[str, str]] = []
    if todo:
        progress = _Progress(ablation, todo, report)
        queue = WorkQueue(todo, should_stop, waits=False)
        cluster = ablation.base.cluster.logging_into(ablation.root)
        asked = cluster.jobs if cluster.scheduler == "slurm" else workers
        with pool(cluster, min(asked, len(todo)), notify) as running:
            for cell, future in running.run(_work(ablation, running, progress, should_stop), queue):
                if (reason := _failure(future)) is not None:
                    failures.append((cell.name, reason))
                progress.ended(cell)
        if queue.is_stopped:
            left = sum(not ablation.is_finished(cell) for cell in ablation.cells)
            raise Stopped(f"{len(ablation.cells) - left} of {len(ablation.cells)} cells are done and kept")
    write_table(ablation)
    return failures


def train_in_processes(pairs: Location, cells_folder: Path, every: int | None, cell: Cell) -> None:
    """Train a cell on a worker, which tells nobody how far it is. Raises as `run_cell`."""
    with _ONE_AT_A_TIME:
        run_cell(
            cell.config,
            pairs,
            cells_folder / cell.name,
            eval_interval(cell.config, every),
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
            train_in_processes, ablation.pairs.absolute(), ablation.cells_folder.absolute(), ablation.every
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
