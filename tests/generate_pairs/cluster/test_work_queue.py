"""Units go out in order, until a stop is asked for or the next would end too late."""

from __future__ import annotations

from generate_pairs.cluster.work_queue import HandOut
from generate_pairs.generation.work_units import Task, work_unit

UNITS = [work_unit(index, 10, 5) for index in range(3)]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_units_go_out_in_order_and_once() -> None:
    hand_out = HandOut(UNITS, lambda: False)
    assert [hand_out.take() for _ in range(4)] == [*UNITS, None]
    assert (hand_out.is_over, hand_out.is_stopped, hand_out.is_late) == (True, False, False)


def test_a_wish_to_stop_is_not_taken_back() -> None:
    answers = iter([False, True, False])
    hand_out = HandOut(UNITS, lambda: next(answers))
    assert [hand_out.take() for _ in range(3)] == [UNITS[0], None, None]
    assert hand_out.is_stopped


def test_a_wish_to_stop_after_the_last_unit_stops_nothing() -> None:
    hand_out = HandOut(UNITS[:1], lambda: False)
    hand_out.take()
    hand_out._should_stop = lambda: True
    assert hand_out.is_over
    assert not hand_out.is_stopped


def test_long_units_are_not_waited_for_once_a_stop_is_asked_for() -> None:
    wishes = iter([False, False, True, False])
    hand_out = HandOut(UNITS, lambda: next(wishes), waits=False)
    assert hand_out.take() == UNITS[0]
    assert [hand_out.is_abandoned for _ in range(3)] == [False, True, True]
    assert hand_out.is_stopped
    assert hand_out.take() is None
    patient = HandOut(UNITS, lambda: True)
    assert (patient.is_abandoned, patient.is_stopped) == (False, False)


def test_a_unit_is_begun_when_the_longest_so_far_would_still_end() -> None:
    clock = Clock()
    hand_out = HandOut(UNITS, lambda: False, deadline=160.0, clock=clock)
    assert hand_out.take() == UNITS[0]
    for seconds in (30.0, 20.0):
        hand_out.took(seconds)
    clock.now = 129.0
    assert hand_out.take() == UNITS[1]
    clock.now = 130.0
    assert hand_out.take() is None
    assert (hand_out.is_stopped, hand_out.is_late) == (False, True)


def test_tasks_share_all_shards_among_them() -> None:
    tasks = [Task(index, 3) for index in range(3)]
    owners = [[task.index for task in tasks if task.owns(shard)] for shard in range(7)]
    assert owners == [[0], [1], [2], [0], [1], [2], [0]]
