"""Measure the overhead of Dask: its workers compared with plain loops over the same shards, without start-up.

One worker is compared with one loop, two workers with two parallel loops. Both make the same shards of
the same data set with the same function, in processes with one thread; each makes a shard before the timing starts.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import click
from script import Script, markdown

from generate_pairs.cluster.open_pool import open_pool
from generate_pairs.cluster.work_queue import WorkQueue
from generate_pairs.generation.plan import plan_generation
from generate_pairs.generation.shard_jobs import Job, run_unit
from generate_pairs.generation.work_units import WorkUnit
from pipeline.config.run_config import RunConfig, compose
from shards.core.errors import Failed
from shards.dataset.manifest import create_dataset

ALLOWED = {1: 1.05, 2: 1.10}
"""Largest accepted ratio of wall times with and without Dask, by number of workers."""


@click.command(cls=Script)
@click.argument("preset")
@click.option("--shards", default=5, show_default=True, help="Shards that each worker makes in one measurement.")
@click.option(
    "--repeats",
    default=5,
    show_default=True,
    help="Measurements of each kind, alternating; the table shows medians.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As in `tokenleap generate`.")
def main(preset: str, shards: int, repeats: int, settings: tuple[str, ...]) -> None:
    """Time PRESET's shards made by Dask workers and by plain loops.

    Exit with 1 if Dask costs more than 5 % with one worker, or 10 % with two.
    """
    config = compose(preset, ["cluster.device=cpu", *settings])
    table, worst = [], []
    for workers in ALLOWED:
        units = _units(config, workers * shards + workers)
        warm, timed = units[:workers], units[workers:]
        with _loops(config, workers, warm, timed) as bare, _dask(config, workers, warm, timed) as dask:
            pairs = [(_timed(config, bare), _timed(config, dask)) for _ in range(repeats)]
        ratios = [with_dask / without for without, with_dask in pairs]
        middle = statistics.median(ratios)
        without, with_dask = (statistics.median(column) for column in zip(*pairs, strict=True))
        spread = f"{min(ratios):.3f} .. {max(ratios):.3f}"
        table.append([str(workers), f"{without:.2f}", f"{with_dask:.2f}", f"{middle:.3f}", spread])
        if middle > ALLOWED[workers]:
            worst.append(
                f"{workers} workers: {middle:.3f} x the time of plain loops, at most {ALLOWED[workers]} x is allowed"
            )
    click.echo(markdown(["workers", "loops, s", "Dask, s", "ratio, median", "least .. most"], table))
    if worst:
        raise Failed("; ".join(worst))


def _units(config: RunConfig, count: int) -> list[WorkUnit]:
    pairs = config.pairs
    return [WorkUnit(index, pairs.pairs_per_shard, pairs.batch_size) for index in range(count)]


def _job(config: RunConfig, root: Path) -> Job:
    plan = plan_generation(config.generate, root)
    create_dataset(root, plan.spec)
    return Job(root, plan.spec, config.teacher, "cpu", root / "logs")


def _timed(config: RunConfig, run: Callable[[Job], float]) -> float:
    with tempfile.TemporaryDirectory(prefix="dask_overhead-") as folder:
        return run(_job(config, Path(folder) / "pairs"))


@contextmanager
def _dask(
    config: RunConfig, workers: int, warm: Sequence[WorkUnit], timed: Sequence[WorkUnit]
) -> Iterator[Callable[[Job], float]]:
    """A function that times the shards on Dask workers."""
    with open_pool(config.cluster, workers, lambda _: None) as running:

        def on_dask(job: Job, units: Sequence[WorkUnit]) -> None:
            for _, ended in running.run(partial(run_unit, job), WorkQueue(units, lambda: False)):
                ended.result()

        yield lambda job: _seconds(on_dask, job, warm, timed)


@contextmanager
def _loops(
    config: RunConfig, workers: int, warm: Sequence[WorkUnit], timed: Sequence[WorkUnit]
) -> Iterator[Callable[[Job], float]]:
    """A function that times the shards in independent processes."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        loops = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(workers)]

        def in_all(job: Job, units: Sequence[WorkUnit]) -> None:
            futures = [loop.submit(_loop, job, units[index::workers]) for index, loop in enumerate(loops)]
            for future in futures:
                future.result()

        yield lambda job: _seconds(in_all, job, warm, timed)


def _loop(job: Job, units: Sequence[WorkUnit]) -> None:
    for unit in units:
        run_unit(job, unit)


def _seconds(
    make: Callable[[Job, Sequence[WorkUnit]], None],
    job: Job,
    warm: Sequence[WorkUnit],
    timed: Sequence[WorkUnit],
) -> float:
    """Seconds of the timed units; the others are made first, so that every process has loaded its teacher."""
    make(job, warm)
    began = time.monotonic()
    make(job, timed)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
