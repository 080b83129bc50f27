"""Trains the cells of an ablation in this process, on local workers or on a cluster. Unfinished cells resume."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from generate_pairs.cluster.base import InProcessPool, Pool
from generate_pairs.cluster.open_pool import open_pool
from generate_pairs.cluster.work_queue import WorkQueue
from pipeline.ablation.ablation import Ablation, claim_ablation
from pipeline.ablation.cell import run_cell
from pipeline.ablation.collect import write_table
from pipeline.ablation.grid import Cell, eval_interval
from shards.core.callbacks import Notify, Report, ShouldStop
from shards.core.errors import Stopped
from shards.storage.paths import Location

_ONE_AT_A_TIME = threading.Lock()
"""Only one cell trains in a process at a time, because training sets the process's random state and thread count."""


def run_ablation(
    ablation: Ablation, *, workers: int, report: Report, should_stop: ShouldStop, notify: Notify
) -> list[tuple[str, str]]:
    """Train all unfinished cells, and write the table of all finished ones.

    Args:
        ablation: an ablation that `refuse_ablation` accepts.
        workers: local worker processes; 0 trains in this process. Ignored on other clusters.
        report: called with (steps done, total steps, current cell).
        should_stop: called after every step in this process. Cells on workers later resume from their last checkpoints.
        notify: receives one message that names the place where the cells are trained.

    Returns:
        The failed cells, each with the reason; all others are finished.

    Raises:
        Refused: the folder cannot be written to.
        Failed: the cluster was lost.
        Stopped: `should_stop` returned True; finished cells are kept.
    """
    claim_ablation(ablation)
    todo = [cell for cell in ablation.cells if not ablation.is_finished(cell)]
    failures: list[tuple[str, str]] = []
    if todo:
        progress = _Progress(ablation, todo, report)
        queue = WorkQueue(todo, should_stop, wait_for_running=False)
        cluster = ablation.base.cluster.with_log_folder(ablation.root)
        num_workers = cluster.jobs if cluster.scheduler == "slurm" else workers
        with open_pool(cluster, min(num_workers, len(todo)), notify) as pool:
            for cell, future in pool.run(_cell_function(ablation, pool, progress, should_stop), queue):
                if (reason := _failure(future)) is not None:
                    failures.append((cell.name, reason))
                progress.finish(cell)
        if queue.is_stopped:
            finished = sum(map(ablation.is_finished, ablation.cells))
            raise Stopped(f"{finished} of {len(ablation.cells)} cells are finished and kept")
    write_table(ablation)
    return failures


def train_on_worker(pairs: Location, cells_folder: Path, every: int | None, cell: Cell) -> None:
    """Train a cell on a worker, without progress reports. Raises as `run_cell`."""
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
    """Reports the steps of the grid: those of finished cells, and of the cell that trains in this process."""

    def __init__(self, ablation: Ablation, todo: list[Cell], report: Report) -> None:
        self.total = sum(cell.config.train.num_steps for cell in ablation.cells)
        self.done = self.total - sum(cell.config.train.num_steps for cell in todo)
        self.report = report
        report(self.done, self.total, "")

    def finish(self, cell: Cell) -> None:
        self.done += cell.config.train.num_steps
        self.report(self.done, self.total, cell.name)

    def of(self, cell: Cell) -> Report:
        """The callback for a cell's own steps."""
        return lambda done, _, note: self.report(self.done + done, self.total, ", ".join(filter(None, [cell.name, note])))


def _cell_function(
    ablation: Ablation, pool: Pool, progress: _Progress, should_stop: ShouldStop
) -> Callable[[Cell], None]:
    """The function that trains a cell. In this process it reports every step and can stop after each."""
    if not isinstance(pool, InProcessPool):
        return partial(train_on_worker, ablation.pairs.absolute(), ablation.cells_folder.absolute(), ablation.every)

    def train_here(cell: Cell) -> None:
        run_cell(
            cell.config,
            ablation.pairs,
            ablation.cell_dir(cell).root,
            ablation.eval_interval(cell),
            report=progress.of(cell),
            should_stop=should_stop,
        )

    return train_here


def _failure(future: Future[Any]) -> str | None:
    """The reason why a cell failed, None if it did not fail.

    Raises:
        Stopped: a stop was requested.
    """
    match future.exception():
        case None:
            return None
        case Stopped() as stopped:
            raise stopped
        case error:
            return str(error) or repr(error)
