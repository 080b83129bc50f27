"""What a pool on Dask knows of its workers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from generate_pairs.cluster.dask_pool import OnDask, WorkerCount
from generate_pairs.cluster.work_queue import WorkQueue
from generate_pairs.generation.work_units import WorkUnit, work_unit
from shards.core.errors import Failed


class Scheduler:
    """A stand-in: says how many workers there are, and what time it is."""

    def __init__(self) -> None:
        self.scheduler = SimpleNamespace(address="tcp://here:8786")
        self.workers, self.asked, self.now = 0, 0, 1000.0

    def nthreads(self) -> dict[str, int]:
        self.asked += 1
        if self.workers < 0:
            raise OSError("gone")
        return {f"worker-{index}": 1 for index in range(self.workers)}


def test_workers_are_counted_now_and_then() -> None:
    scheduler = Scheduler()
    worker_count = WorkerCount(scheduler, lambda _: None, lambda: scheduler.now)
    scheduler.workers = 3
    assert [worker_count.count(), worker_count.count()] == [3, 3]
    scheduler.workers = 2
    assert worker_count.count() == 3
    scheduler.now += 0.5
    assert (worker_count.count(), scheduler.asked) == (2, 2)


def test_a_cluster_without_workers_is_told_once_each_time() -> None:
    scheduler, told = Scheduler(), list[str]()
    worker_count = WorkerCount(scheduler, told.append, lambda: scheduler.now)
    for workers in [0] * 80 + [1] + [0] * 80:
        scheduler.workers = workers
        assert worker_count.count() == workers
        scheduler.now += 0.5
    assert told == ["the Dask scheduler at tcp://here:8786 has no workers; waiting for some"] * 2


def test_a_scheduler_that_is_gone_is_a_failure() -> None:
    scheduler = Scheduler()
    scheduler.workers = -1
    with pytest.raises(Failed, match="the Dask scheduler at tcp://here:8786 is lost"):
        WorkerCount(scheduler, lambda _: None).count()


class Client:
    """A stand-in for a Dask client: what is submitted ends when the workers are counted next.

    Attributes:
        notes: what was asked of it and what came of it, in order.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self.notes = workers, list[str]()
        self._under_way: list[Submitted] = []

    def nthreads(self) -> dict[str, int]:
        while self._under_way:
            self._under_way.pop(0).end()
        return {f"worker-{index}": 1 for index in range(self.workers)}

    def submit(self, work: Callable[[WorkUnit], Any], unit: WorkUnit, pure: bool) -> Submitted:
        self.notes.append(f"submit {unit.shard_index}")
        self._under_way.append(Submitted(unit.shard_index, self.notes))
        return self._under_way[-1]


class Submitted(Future[int]):
    """Notes when it ends, when its result is fetched, and when nobody holds it any more."""

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
        self.notes.append(f"let go {self.index}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are counted at every turn."""
    monkeypatch.setattr("generate_pairs.cluster.dask_pool.POLL_SECONDS", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_unit_is_let_go_as_soon_as_the_next_is_submitted() -> None:
    client, queue = Client(1), WorkQueue([work_unit(index, 10, 5) for index in range(3)], lambda: False)
    ended = OnDask(client, lambda _: None).run(lambda _: None, queue)
    assert [future.result() for _, future in ended] == [0, 1, 2]
    assert [note for note in client.notes if not note.startswith("fetch")] == [
        *("submit 0", "end 0"),
        *("submit 1", "let go 0", "end 1"),
        *("submit 2", "let go 1", "end 2"),
        "let go 2",
    ]


@pytest.mark.usefixtures("impatient")
def test_units_under_way_are_left_where_nobody_waits_for_them() -> None:
    client, wishes = Client(2), list[bool]()
    units = [work_unit(index, 10, 5) for index in range(3)]
    queue = WorkQueue(units, lambda: bool(wishes), waits=False)
    ended = []
    for unit, _ in OnDask(client, lambda _: None).run(lambda unit: unit, queue):
        ended.append(unit)
        wishes.append(True)
    assert ended == units[:1]
    assert queue.is_stopped


@pytest.mark.usefixtures("impatient")
def test_whoever_leaves_with_a_unit_that_ended_has_begun_no_further_one() -> None:
    client, queue = Client(2), WorkQueue([work_unit(index, 10, 5) for index in range(5)], lambda: False)
    ended = OnDask(client, lambda _: None).run(lambda _: None, queue)
    next(ended)
    assert client.notes == ["submit 0", "submit 1", "end 0", "end 1", "fetch 0"]
