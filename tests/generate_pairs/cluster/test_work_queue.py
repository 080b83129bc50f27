"""Units go out in order, until a stop is asked for or the next would end too late."""

from __future__ import annotations

from generate_pairs.cluster.work_queue import WorkQueue
from generate_pairs.generation.work_units import Task, work_unit

UNITS = [work_unit(index, 10, 5) for index in range(3)]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_units_go_out_in_order_and_once() -> None:
    queue = WorkQueue(UNITS, lambda: False)
    assert [queue.pop() for _ in range(4)] == [*UNITS, None]
    assert (queue.is_over, queue.is_stopped, queue.past_deadline) == (True, False, False)


def test_a_wish_to_stop_is_not_taken_back() -> None:
    answers = iter([False, True, False])
    queue = WorkQueue(UNITS, lambda: next(answers))
    assert [queue.pop() for _ in range(3)] == [UNITS[0], None, None]
    assert queue.is_stopped


def test_a_wish_to_stop_after_the_last_unit_stops_nothing() -> None:
    queue = WorkQueue(UNITS[:1], lambda: False)
    queue.pop()
    queue._should_stop = lambda: True
    assert queue.is_over
    assert not queue.is_stopped


def test_long_units_are_not_waited_for_once_a_stop_is_asked_for() -> None:
    wishes = iter([False, False, True, False])
    queue = WorkQueue(UNITS, lambda: next(wishes), waits=False)
    assert queue.pop() == UNITS[0]
    assert [queue.cancelled for _ in range(3)] == [False, True, True]
    assert queue.is_stopped
    assert queue.pop() is None
    patient = WorkQueue(UNITS, lambda: True)
    assert (patient.cancelled, patient.is_stopped) == (False, False)


def test_a_unit_is_begun_when_the_longest_so_far_would_still_end() -> None:
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


def test_tasks_share_all_shards_among_them() -> None:
    tasks = [Task(index, 3) for index in range(3)]
    owners = [[task.index for task in tasks if task.owns(shard)] for shard in range(7)]
    assert owners == [[0], [1], [2], [0], [1], [2], [0]]
