"""Work units on a Dask cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue
from typing import Any

from generate_pairs.cluster.base import WorkersDied
from generate_pairs.cluster.work_queue import Unit, WorkQueue
from shards.core.callbacks import Notify
from shards.core.errors import Failed

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 30.0
"""The user gets a message when a cluster has no workers for this long."""


class DaskPool:
    """Runs units on a Dask cluster. If a worker dies, its unit runs again elsewhere, until several workers have died.

    Each worker gets one unit at a time and none in advance, for two reasons: a stop only waits for the running units,
    and Dask, which counts a worker's death against every unit the worker had, counts it against the unit that ran.
    """

    def __init__(self, client: Any, notify: Notify) -> None:
        self.client, self.notify = client, notify

    def run(self, work: Callable[[Unit], Any], queue: WorkQueue[Unit]) -> Iterator[tuple[Unit, Future[Any]]]:
        ended: SimpleQueue[Any] = SimpleQueue()
        running: dict[Any, Unit] = {}
        worker_count = WorkerCount(self.client, self.notify)
        while (running or not queue.is_exhausted) and not queue.cancelled:
            num_workers = worker_count.count()
            while len(running) < num_workers and (unit := queue.pop()) is not None:
                submitted = self.client.submit(work, unit, pure=False)
                running[submitted] = unit
                submitted.add_done_callback(ended.put)
            # Drop the last unit's future only now: Dask's client sends one message in 10 ms, so releasing a future
            # right before a submission would delay that submission.
            done = None
            try:
                done = ended.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            yield running.pop(done), self._outcome(done)

    def _outcome(self, done: Any) -> Future[Any]:
        from distributed.scheduler import KilledWorker

        outcome: Future[Any] = Future()
        try:
            error = done.exception()
            result = done.result() if error is None else None
        except (OSError, CancelledError) as lost:
            raise scheduler_lost(self.client) from lost
        # This project cancels no unit, so the connection to the scheduler was lost.
        if isinstance(error, CancelledError):
            raise scheduler_lost(self.client)
        if isinstance(error, KilledWorker):
            error = WorkersDied(f"{error.allowed_failures + 1} workers died making it")
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)
        return outcome


class WorkerCount:
    """The number of workers of a cluster, read at most every `POLL_SECONDS`."""

    def __init__(self, client: Any, notify: Notify, clock: Callable[[], float] = time.monotonic) -> None:
        self.client, self.notify, self.clock = client, notify, clock
        self._number = 0
        self._last_read = -math.inf
        self._last_nonzero: float | None = clock()

    def count(self) -> int:
        """The number of workers, at most `POLL_SECONDS` old; notifies the user if it has long been zero.

        Raises:
            Failed: the scheduler does not answer.
        """
        now = self.clock()
        if now - self._last_read < POLL_SECONDS:
            return self._number
        try:
            self._number, self._last_read = len(self.client.nthreads()), now
        except (OSError, CancelledError) as error:
            raise scheduler_lost(self.client) from error
        if self._number:
            self._last_nonzero = now
        elif self._last_nonzero is not None and now - self._last_nonzero > PATIENCE_SECONDS:
            self.notify(f"{_scheduler_name(self.client)} has no workers; waiting for some")
            self._last_nonzero = None
        return self._number


def scheduler_lost(client: Any) -> Failed:
    """The error that reports a lost connection to a client's scheduler."""
    return Failed(f"{_scheduler_name(client)} is lost")


def _scheduler_name(client: Any) -> str:
    return f"the Dask scheduler at {client.scheduler.address}"
