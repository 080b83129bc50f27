"""Progress in a log file: few lines, honest rates."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest

from pipeline.runtime.progress import duration, progress


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_short_phase_says_nothing() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("pairs", "pairs", stream, clock) as report:
        for done in range(5):
            report(done, 5, "")
            clock.now += 0.9
    assert stream.getvalue() == ""


def test_a_line_tells_done_total_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("pairs", "pairs", stream, clock) as report:
        report(0, 10_000, "")
        clock.now += 5
        report(2_000, 10_000, "1 failed")
    assert stream.getvalue() == "pairs: 2,000/10,000 pairs, 400.0 pairs/s, 20 s left, 1 failed\n"


def test_what_an_earlier_run_did_is_not_speed() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("student", "steps", stream, clock) as report:
        report(900, 1_000, "")
        clock.now += 10
        report(910, 1_000, "")
    assert "1.0 steps/s, 1 min 30 s left" in stream.getvalue()


def test_lines_keep_ten_seconds_apart() -> None:
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
    ("seconds", "words"),
    [(0.44, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7_620, "2 h 07 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
