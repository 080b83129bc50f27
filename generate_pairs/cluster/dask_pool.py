"""Work units on a Dask cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue
from typing import Any

from generate_pairs.cluster.base import Unit, WorkersDied
from generate_pairs.cluster.work_queue import WorkQueue
from shards.core.callbacks import Notify
from shards.core.errors import Failed

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 30.0
"""For so long a cluster may be without workers before a person is told."""


class OnDask:
    """Units on a Dask cluster; one whose worker dies runs again elsewhere, until it has cost several workers.

    Every worker has one unit at a time and none in reserve. So what is asked to stop ends with the units under way,
    and Dask, which blames a death on all units that the dead worker held, blames the one that ran.
    """

    def __init__(self, client: Any, notify: Notify) -> None:
        self.client, self.notify = client, notify

    def run(self, work: Callable[[Unit], Any], queue: WorkQueue[Unit]) -> Iterator[tuple[Unit, Future[Any]]]:
        ended: SimpleQueue[Any] = SimpleQueue()
        under_way: dict[Any, Unit] = {}
        worker_count = WorkerCount(self.client, self.notify)
        while (under_way or not queue.is_over) and not queue.cancelled:
            num_workers = worker_count.count()
            while len(under_way) < num_workers and (unit := queue.pop()) is not None:
                submitted = self.client.submit(work, unit, pure=False)
                under_way[submitted] = unit
                submitted.add_done_callback(ended.put)
            # Dask's client sends one message in 10 ms, and to let go of a unit is one: sent right before the next unit
            # is submitted, it would keep that waiting.
            done = None
            try:
                done = ended.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            yield under_way.pop(done), self._outcome(done)

    def _outcome(self, done: Any) -> Future[Any]:
        from distributed.scheduler import KilledWorker

        outcome: Future[Any] = Future()
        try:
            error = done.exception()
            result = done.result() if error is None else None
        except (OSError, CancelledError) as gone:
            raise lost(self.client) from gone
        # Nobody here cancels anything: the connection did, and with it went all that was under way.
        if isinstance(error, CancelledError):
            raise lost(self.client)
        if isinstance(error, KilledWorker):
            error = WorkersDied(f"{error.allowed_failures + 1} workers died making it")
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)
        return outcome


class WorkerCount:
    """How many workers a cluster has: asked now and then, and told when it has had none for long."""

    def __init__(self, client: Any, notify: Notify, clock: Callable[[], float] = time.monotonic) -> None:
        self.client, self.notify, self.clock = client, notify, clock
        self._number = 0
        self._last_asked = -math.inf
        self._last_seen: float | None = clock()

    def count(self) -> int:
        """The workers there are, or were half a second ago.

        Raises:
            Failed: the scheduler does not answer.
        """
        now = self.clock()
        if now - self._last_asked < POLL_SECONDS:
            return self._number
        try:
            self._number, self._last_asked = len(self.client.nthreads()), now
        except (OSError, CancelledError) as error:
            raise lost(self.client) from error
        if self._number:
            self._last_seen = now
        elif self._last_seen is not None and now - self._last_seen > PATIENCE_SECONDS:
            self.notify(f"{_named(self.client)} has no workers; waiting for some")
            self._last_seen = None
        return self._number


def lost(client: Any) -> Failed:
    """What ends the work when a client's scheduler is gone."""
    return Failed(f"{_named(client)} is lost")


def _named(client: Any) -> str:
    return f"the Dask scheduler at {client.scheduler.address}"
