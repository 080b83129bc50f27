"""Progress of a long phase: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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


def _lines(title: str, unit: str, stream: TextIO, clock: Callable[[], float]) -> Report:
    """Print plain lines with the finished and total units, the rate and the time left."""
    started = clock()
    next_line = started + FIRST_LINE_SECONDS
    done_before: int | None = None

    def report(done: int, total: int, note: str) -> None:
        nonlocal next_line, done_before
        # Units that an earlier run finished do not count for this run's rate.
        if done_before is None:
            done_before = done
        now = clock()
        if now < next_line:
            return
        next_line = now + LINE_INTERVAL_SECONDS
        rate = (done - done_before) / (now - started)
        parts = [f"{done:,}/{total:,} {unit}"]
        if rate > 0:
            parts += [f"{rate:,.1f} {unit}/s", f"{duration((total - done) / rate)} left"]
        print(f"{title}: {', '.join([*parts, *filter(None, [note])])}", file=stream, flush=True)

    return report


@contextmanager
def _bar(title: str, unit: str, stream: TextIO) -> Iterator[Report]:
    """Show a tqdm bar, created at the first report, which supplies the total and the units already finished."""
    bar: tqdm | None = None

    def report(done: int, total: int, note: str) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=done, desc=title, unit=f" {unit}", file=stream, dynamic_ncols=True)
        bar.total = total
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def progress(
    title: str, unit: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Report]:
    """Show the progress of a phase, counted in `unit` (plural), on a stream, by default standard error.

    A terminal gets a bar, any other stream plain lines: the first after 5 s, then at most one every 10 s.

    Yields:
        A callback (done, total, note); `done` includes the units that earlier runs finished.
    """
    stream = stream or sys.stderr
    display = _bar(title, unit, stream) if stream.isatty() else nullcontext(_lines(title, unit, stream, clock))
    with display as report:
        yield report
