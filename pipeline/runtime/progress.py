"""How far a long phase has come: a bar on a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from shards.core.callbacks import Notify, Report

FIRST_LINE_SECONDS = 5.0
LINE_INTERVAL_SECONDS = 10.0


def duration(seconds: float) -> str:
    """Seconds in words: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def notifier(title: str) -> Notify:
    """What long work tells a person once, on standard error: `title: sentence`, between two lines of progress."""
    return lambda sentence: tqdm.write(f"{title}: {sentence}", file=sys.stderr)


class _Lines:
    """Plain lines: done of total, rate, time left."""

    def __init__(self, title: str, unit: str, stream: TextIO, clock: Callable[[], float]) -> None:
        self.title, self.unit, self.stream, self.clock = title, unit, stream, clock
        self.started = clock()
        self.next_line = self.started + FIRST_LINE_SECONDS
        self.done_before: int | None = None

    def report(self, done: int, total: int, note: str) -> None:
        # What an earlier run did must not count as this run's speed.
        if self.done_before is None:
            self.done_before = done
        now = self.clock()
        if now < self.next_line:
            return
        self.next_line = now + LINE_INTERVAL_SECONDS
        rate = (done - self.done_before) / (now - self.started)
        parts = [f"{done:,}/{total:,} {self.unit}"]
        if rate > 0:
            parts += [f"{rate:,.1f} {self.unit}/s", f"{duration((total - done) / rate)} left"]
        print(f"{self.title}: {', '.join([*parts, *filter(None, [note])])}", file=self.stream, flush=True)

    def close(self) -> None:
        """Lines need no end."""


class _Bar:
    """A tqdm bar, made at the first report: only then are the total and the finished part known."""

    def __init__(self, title: str, unit: str, stream: TextIO) -> None:
        self.title, self.unit, self.stream = title, unit, stream
        self.bar: tqdm | None = None

    def report(self, done: int, total: int, note: str) -> None:
        if self.bar is None:
            self.bar = tqdm(
                total=total,
                initial=done,
                desc=self.title,
                unit=f" {self.unit}",
                file=self.stream,
                dynamic_ncols=True,
            )
        self.bar.total = total
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextmanager
def progress(
    title: str, unit: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Report]:
    """Shows how a phase comes along.

    Args:
        title: the phase, as in `pairs`.
        unit: what is counted, in the plural, as in `steps`.
        stream: where to; standard error by default. A terminal gets a bar, anything else plain lines:
            the first after 5 s, then one every 10 s at most.
        clock: seconds from any origin.

    Yields:
        A callable to be told (done, total, note); `done` counts what earlier runs finished, too.
    """
    stream = stream or sys.stderr
    display = _Bar(title, unit, stream) if stream.isatty() else _Lines(title, unit, stream, clock)
    try:
        yield display.report
    finally:
        display.close()
