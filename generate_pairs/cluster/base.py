"""The interface of a pool of workers, and the pool that runs units in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

from generate_pairs.cluster.work_queue import Unit, WorkQueue


class WorkersDied(Exception):
    """Every worker that ran this unit died."""


class Pool(Protocol):
    """Runs the units of a queue and yields each unit as it ends."""

    def run(self, work: Callable[[Unit], Any], queue: WorkQueue[Unit]) -> Iterator[tuple[Unit, Future[Any]]]: ...


class InProcessPool:
    """Runs one unit after another in this process."""

    def run(self, work: Callable[[Unit], Any], queue: WorkQueue[Unit]) -> Iterator[tuple[Unit, Future[Any]]]:
        while (unit := queue.pop()) is not None:
            future: Future[Any] = Future()
            try:
                future.set_result(work(unit))
            # As on a cluster, the caller reads the error from the unit's future.
            except Exception as error:
                future.set_exception(error)
            yield unit, future
