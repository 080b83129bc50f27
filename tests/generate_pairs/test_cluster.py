"""What a pool on Dask knows of its workers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from generate_pairs.cluster import Census
from shards.errors import Failed


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
    census = Census(scheduler, lambda _: None, lambda: scheduler.now)
    scheduler.workers = 3
    assert [census.count(), census.count()] == [3, 3]
    scheduler.workers = 2
    assert census.count() == 3
    scheduler.now += 0.5
    assert (census.count(), scheduler.asked) == (2, 2)


def test_a_cluster_without_workers_is_told_once_each_time() -> None:
    scheduler, told = Scheduler(), list[str]()
    census = Census(scheduler, told.append, lambda: scheduler.now)
    for workers in [0] * 80 + [1] + [0] * 80:
        scheduler.workers = workers
        assert census.count() == workers
        scheduler.now += 0.5
    assert told == ["the Dask scheduler at tcp://here:8786 has no workers; waiting for some"] * 2


def test_a_scheduler_that_is_gone_is_a_failure() -> None:
    scheduler = Scheduler()
    scheduler.workers = -1
    with pytest.raises(Failed, match="the Dask scheduler at tcp://here:8786 is lost"):
        Census(scheduler, lambda _: None).count()
