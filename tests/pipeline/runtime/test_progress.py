"""Progress in a log file: few lines with correct rates."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest

from pipeline.runtime.progress import duration, progress

pytestmark = pytest.mark.quick


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_short_phase_prints_nothing() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("pairs", "pairs", stream, clock) as report:
        for done in range(5):
            report(done, 5, "")
            clock.now += 0.9
    assert stream.getvalue() == ""


def test_a_line_contains_done_total_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("pairs", "pairs", stream, clock) as report:
        report(0, 10_000, "")
        clock.now += 5
        report(2_000, 10_000, "1 failed")
    assert stream.getvalue() == "pairs: 2,000/10,000 pairs, 400.0 pairs/s, 20 s left, 1 failed\n"


def test_units_of_an_earlier_run_do_not_count_for_the_rate() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("student", "steps", stream, clock) as report:
        report(900, 1_000, "")
        clock.now += 10
        report(910, 1_000, "")
    assert "1.0 steps/s, 1 min 30 s left" in stream.getvalue()


def test_lines_are_ten_seconds_apart() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("pairs", "pairs", stream, clock) as report:
        for done in range(61):
            report(done, 60, "")
            clock.now += 1
    shown = [int(line.split("/")[0].split()[-1]) for line in stream.getvalue().splitlines()]
    assert shown == [5, 15, 25, 35, 45, 55]
    assert all(after - before == 10 for before, after in pairwise(shown))


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with progress("student", "steps", stream) as report:
        report(40, 100, "")
        report(100, 100, "loss 0.5")
    assert "student: 100%" in stream.getvalue()
    assert "loss 0.5" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7_620, "2 h 07 min")],
)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert duration(seconds) == text
