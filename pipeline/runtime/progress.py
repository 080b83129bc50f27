"""Progress of a long phase: a bar on a terminal, a plain line every few seconds elsewhere."""

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
    """Format seconds as `0.4 s`, `12 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def notifier(title: str) -> Notify:
    """A callback that prints `title: sentence` on standard error without breaking a progress bar."""
    return lambda sentence: tqdm.write(f"{title}: {sentence}", file=sys.stderr)


class _Lines:
    """Plain lines with the finished and total units, the rate and the time left."""

    def __init__(self, title: str, unit: str, stream: TextIO, clock: Callable[[], float]) -> None:
        self.title, self.unit, self.stream, self.clock = title, unit, stream, clock
        self.started = clock()
        self.next_line = self.started + FIRST_LINE_SECONDS
        self.done_before: int | None = None

    def report(self, done: int, total: int, note: str) -> None:
        # Units that an earlier run finished do not count for this run's rate.
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
        """Nothing to close."""


class _Bar:
    """A tqdm bar. It is created at the first report, which supplies the total and the units already finished."""

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
    """Show the progress of a phase.

    Args:
        title: name of the phase, such as `pairs`.
        unit: what is counted, in the plural, such as `steps`.
        stream: output stream, standard error by default. A terminal gets a bar, any other stream plain lines:
            the first after 5 s, then at most one every 10 s.
        clock: returns seconds from any origin.

    Yields:
        A callback (done, total, note); `done` includes the units that earlier runs finished.
    """
    stream = stream or sys.stderr
    display = _Bar(title, unit, stream) if stream.isatty() else _Lines(title, unit, stream, clock)
    try:
        yield display.report
    finally:
        display.close()
