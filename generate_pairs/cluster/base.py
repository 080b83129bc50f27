"""What a pool of workers is, and the one that runs units in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from generate_pairs.cluster.work_queue import WorkQueue

Unit = TypeVar("Unit")


class WorkersDied(Exception):
    """Every worker that was given this unit died."""


class Pool(Protocol):
    """Runs units somewhere, as long as they are handed out, and yields each as it ends."""

    def run(
        self, work: Callable[[Unit], Any], queue: WorkQueue[Unit]
    ) -> Iterator[tuple[Unit, Future[Any]]]: ...


class InProcess:
    """One unit after another, here."""

    def run(self, work: Callable[[Unit], Any], queue: WorkQueue[Unit]) -> Iterator[tuple[Unit, Future[Any]]]:
        while (unit := queue.pop()) is not None:
            future: Future[Any] = Future()
            try:
                future.set_result(work(unit))
            # Whatever it is, it belongs to this unit, as it does on a cluster: who waits for it judges it.
            except Exception as error:
                future.set_exception(error)
            yield unit, future
