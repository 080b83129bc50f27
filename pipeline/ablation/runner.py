"""Trains the cells of an ablation in this process, on local workers or on a cluster. Unfinished cells resume."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

from generate_pairs.cluster.base import InProcessPool
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
    """Train all unfinished cells of a valid ablation, and write the table of all finished ones.

    Args:
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
        total = sum(cell.config.train.num_steps for cell in ablation.cells)
        done = total - sum(cell.config.train.num_steps for cell in todo)
        report(done, total, "")

        def train_here(cell: Cell) -> None:
            def report_step(steps: int, _: int, note: str) -> None:
                report(done + steps, total, ", ".join(filter(None, [cell.name, note])))

            _train(ablation.pairs, ablation.cells_folder, ablation.every, cell, report_step, should_stop)

        queue = WorkQueue(todo, should_stop, wait_for_running=False)
        cluster = ablation.base.cluster.with_log_folder(ablation.root)
        num_workers = cluster.jobs if cluster.scheduler == "slurm" else workers
        with open_pool(cluster, min(num_workers, len(todo)), notify) as pool:
            train_there = partial(_train, ablation.pairs.absolute(), ablation.cells_folder.absolute(), ablation.every)
            for cell, future in pool.run(train_here if isinstance(pool, InProcessPool) else train_there, queue):
                error = future.exception()
                if isinstance(error, Stopped):
                    raise error
                if error is not None:
                    failures.append((cell.name, str(error) or repr(error)))
                done += cell.config.train.num_steps
                report(done, total, cell.name)
        if queue.is_stopped:
            finished = sum(map(ablation.is_finished, ablation.cells))
            raise Stopped(f"{finished} of {len(ablation.cells)} cells are finished and kept")
    write_table(ablation)
    return failures


def _train(
    pairs: Location,
    cells_folder: Path,
    every: int | None,
    cell: Cell,
    report: Report = lambda *_: None,
    should_stop: ShouldStop = lambda: False,
) -> None:
    """Train a cell; on a worker it reports nothing and does not stop. Raises as `run_cell`."""
    with _ONE_AT_A_TIME:
        run_cell(
            cell.config,
            pairs,
            cells_folder / cell.name,
            eval_interval(cell.config, every),
            report=report,
            should_stop=should_stop,
        )
