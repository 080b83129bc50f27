"""The pool on Dask: worker counts, submission order and errors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from generate_pairs.cluster.dask_pool import DaskPool, WorkerCount
from generate_pairs.cluster.work_queue import WorkQueue
from generate_pairs.generation.work_units import WorkUnit
from shards.core.errors import Failed

pytestmark = pytest.mark.quick


class Scheduler:
    """A fake scheduler with a number of workers and a clock."""

    def __init__(self) -> None:
        self.scheduler = SimpleNamespace(address="tcp://here:8786")
        self.workers, self.num_reads, self.now = 0, 0, 1000.0

    def nthreads(self) -> dict[str, int]:
        self.num_reads += 1
        if self.workers < 0:
            raise OSError("lost")
        return {f"worker-{index}": 1 for index in range(self.workers)}


def test_the_worker_count_is_read_periodically() -> None:
    scheduler = Scheduler()
    worker_count = WorkerCount(scheduler, lambda _: None, lambda: scheduler.now)
    scheduler.workers = 3
    assert [worker_count.count(), worker_count.count()] == [3, 3]
    scheduler.workers = 2
    assert worker_count.count() == 3
    scheduler.now += 0.5
    assert (worker_count.count(), scheduler.num_reads) == (2, 2)


def test_a_cluster_without_workers_is_reported_once_each_time() -> None:
    scheduler, messages = Scheduler(), list[str]()
    worker_count = WorkerCount(scheduler, messages.append, lambda: scheduler.now)
    for workers in [0] * 80 + [1] + [0] * 80:
        scheduler.workers = workers
        assert worker_count.count() == workers
        scheduler.now += 0.5
    assert messages == ["the Dask scheduler at tcp://here:8786 has no workers; waiting for some"] * 2


def test_a_lost_scheduler_is_a_failure() -> None:
    scheduler = Scheduler()
    scheduler.workers = -1
    with pytest.raises(Failed, match="the Dask scheduler at tcp://here:8786 is lost"):
        WorkerCount(scheduler, lambda _: None).count()


class Client:
    """A fake Dask client: submitted units end at the next count of the workers.

    Attributes:
        notes: submissions and results, in order.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self.notes = workers, list[str]()
        self._running: list[Submitted] = []

    def nthreads(self) -> dict[str, int]:
        while self._running:
            self._running.pop(0).end()
        return {f"worker-{index}": 1 for index in range(self.workers)}

    def submit(self, work: Callable[[WorkUnit], Any], unit: WorkUnit, pure: bool) -> Submitted:
        self.notes.append(f"submit {unit.shard_index}")
        self._running.append(Submitted(unit.shard_index, self.notes))
        return self._running[-1]


class Submitted(Future[int]):
    """Notes when it ends, when its result is fetched, and when it is garbage collected."""

    def __init__(self, index: int, notes: list[str]) -> None:
        super().__init__()
        self.index, self.notes = index, notes

    def end(self) -> None:
        self.notes.append(f"end {self.index}")
        self.set_result(self.index)

    def result(self, timeout: float | None = None) -> int:
        self.notes.append(f"fetch {self.index}")
        return super().result(timeout)

    def __del__(self) -> None:
        self.notes.append(f"release {self.index}")


@pytest.fixture
def no_polling_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker count is read at every iteration."""
    monkeypatch.setattr("generate_pairs.cluster.dask_pool.POLL_SECONDS", 0.0)


@pytest.mark.usefixtures("no_polling_interval")
def test_a_unit_is_released_after_the_next_submission() -> None:
    client, queue = Client(1), WorkQueue([WorkUnit(index, 10, 5) for index in range(3)], lambda: False)
    ended = DaskPool(client, lambda _: None).run(lambda _: None, queue)
    assert [future.result() for _, future in ended] == [0, 1, 2]
    assert [note for note in client.notes if not note.startswith("fetch")] == [
        *("submit 0", "end 0"),
        *("submit 1", "release 0", "end 1"),
        *("submit 2", "release 1", "end 2"),
        "release 2",
    ]


@pytest.mark.usefixtures("no_polling_interval")
def test_running_units_are_abandoned_without_wait_for_running() -> None:
    client, stops = Client(2), list[bool]()
    units = [WorkUnit(index, 10, 5) for index in range(3)]
    queue = WorkQueue(units, lambda: bool(stops), wait_for_running=False)
    ended = []
    for unit, _ in DaskPool(client, lambda _: None).run(lambda unit: unit, queue):
        ended.append(unit)
        stops.append(True)
    assert ended == units[:1]
    assert queue.is_stopped


@pytest.mark.usefixtures("no_polling_interval")
def test_no_unit_starts_until_the_caller_continues() -> None:
    client, queue = Client(2), WorkQueue([WorkUnit(index, 10, 5) for index in range(5)], lambda: False)
    ended = DaskPool(client, lambda _: None).run(lambda _: None, queue)
    next(ended)
    assert client.notes == ["submit 0", "submit 1", "end 0", "end 1", "fetch 0"]
