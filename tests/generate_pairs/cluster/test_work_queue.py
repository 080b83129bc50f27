"""The work queue returns units in order until a stop is requested or the next unit would end too late."""

from __future__ import annotations

import pytest

from generate_pairs.cluster.work_queue import WorkQueue
from generate_pairs.generation.work_units import Task, WorkUnit

pytestmark = pytest.mark.quick

UNITS = [WorkUnit(index, 10, 5) for index in range(3)]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_units_are_returned_in_order_and_once() -> None:
    queue = WorkQueue(UNITS, lambda: False)
    assert [queue.pop() for _ in range(4)] == [*UNITS, None]
    assert (queue.is_exhausted, queue.is_stopped, queue.past_deadline) == (True, False, False)


def test_a_stop_is_final() -> None:
    answers = iter([False, True, False])
    queue = WorkQueue(UNITS, lambda: next(answers))
    assert [queue.pop() for _ in range(3)] == [UNITS[0], None, None]
    assert queue.is_stopped


def test_a_stop_after_the_last_unit_has_no_effect() -> None:
    queue = WorkQueue(UNITS[:1], lambda: False)
    queue.pop()
    queue._should_stop = lambda: True
    assert queue.is_exhausted
    assert not queue.is_stopped


def test_without_wait_for_running_a_stop_cancels() -> None:
    answers = iter([False, False, True, False])
    queue = WorkQueue(UNITS, lambda: next(answers), wait_for_running=False)
    assert queue.pop() == UNITS[0]
    assert [queue.cancelled for _ in range(3)] == [False, True, True]
    assert queue.is_stopped
    assert queue.pop() is None
    waiting = WorkQueue(UNITS, lambda: True)
    assert (waiting.cancelled, waiting.is_stopped) == (False, False)


def test_a_unit_starts_if_the_longest_so_far_would_end_before_the_deadline() -> None:
    clock = Clock()
    queue = WorkQueue(UNITS, lambda: False, deadline=160.0, clock=clock)
    assert queue.pop() == UNITS[0]
    for seconds in (30.0, 20.0):
        queue.record_duration(seconds)
    clock.now = 129.0
    assert queue.pop() == UNITS[1]
    clock.now = 130.0
    assert queue.pop() is None
    assert (queue.is_stopped, queue.past_deadline) == (False, True)


def test_tasks_divide_all_shards() -> None:
    tasks = [Task(index, 3) for index in range(3)]
    owners = [[task.index for task in tasks if task.owns(shard)] for shard in range(7)]
    assert owners == [[0], [1], [2], [0], [1], [2], [0]]
