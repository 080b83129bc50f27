"""What the cluster costs: Dask workers against bare loops over the same shards, side by side, start-up excluded.

One worker stands against one loop, two workers against two loops that run at the same time. Both make the same shards of
the same data set with the same function, in processes of one thread; both have made a shard before the clock starts.
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

from generate_pairs.cluster.open_pool import pool
from generate_pairs.cluster.work_queue import WorkQueue
from generate_pairs.generation.plan import plan_generation
from generate_pairs.generation.shard_jobs import Job, run_unit
from generate_pairs.generation.work_units import WorkUnit, work_unit
from pipeline.config.run_config import RunConfig, compose
from shards.core.errors import Failed
from shards.dataset.manifest import create_dataset

ALLOWED = {1: 1.05, 2: 1.10}
"""Wall time with Dask over wall time without, by workers."""


@click.command(cls=Script)
@click.argument("preset")
@click.option(
    "--shards", default=5, show_default=True, help="Shards that each worker makes in one measurement."
)
@click.option(
    "--repeats", default=5, show_default=True, help="Measurements of each kind, in turn; medians are told."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As in `tokenleap generate`.")
def main(preset: str, shards: int, repeats: int, settings: tuple[str, ...]) -> None:
    """Measure PRESET's shards made by Dask workers and by bare loops.

    Exit code 1 where Dask costs more than 5 % with one worker, or 10 % with two.
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
                f"{workers} workers cost {middle:.3f} x the bare loops, allowed are {ALLOWED[workers]}"
            )
    click.echo(markdown(["workers", "loops, s", "Dask, s", "ratio, median", "least .. most"], table))
    if worst:
        raise Failed("; ".join(worst))


def _units(config: RunConfig, count: int) -> list[WorkUnit]:
    pairs = config.pairs
    return [work_unit(index, pairs.pairs_per_shard, pairs.batch_size) for index in range(count)]


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
    """Dask workers, and what makes the shards with them."""
    with pool(config.cluster, workers, lambda _: None) as running:

        def on_dask(job: Job, units: Sequence[WorkUnit]) -> None:
            for _, ended in running.run(partial(run_unit, job), WorkQueue(units, lambda: False)):
                ended.result()

        yield lambda job: _seconds(on_dask, job, warm, timed)


@contextmanager
def _loops(
    config: RunConfig, workers: int, warm: Sequence[WorkUnit], timed: Sequence[WorkUnit]
) -> Iterator[Callable[[Job], float]]:
    """Processes that know nothing of each other and have made a shard each, and what makes the others in them."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        loops = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(workers)]

        def in_all(job: Job, units: Sequence[WorkUnit]) -> None:
            shares = [loop.submit(_loop, job, units[index::workers]) for index, loop in enumerate(loops)]
            for share in shares:
                share.result()

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
    """How long the timed units take once the others are made, so that every process has its teacher."""
    make(job, warm)
    began = time.monotonic()
    make(job, timed)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
