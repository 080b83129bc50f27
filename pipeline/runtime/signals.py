"""Stopping on a signal: the first one finishes and saves the current step, a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shards.core.callbacks import ShouldStop
from shards.core.errors import OtherStopped, OutOfTime, Stopped

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StoppedBySignal(Stopped):
    """A command ended early; `resumable` is whether the same command resumes or starts again."""

    def __init__(self, message: str, signal_number: int, *, resumable: bool = True) -> None:
        super().__init__(message)
        self.exit_code = 130 if signal_number == signal.SIGINT else 143
        self.resumable = resumable


@contextmanager
def stopping(*, resumable: bool = True) -> Iterator[ShouldStop]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a flag while the block runs; yields `should_stop`, which long functions poll.

    Raises:
        StoppedBySignal: a long function saw the flag or reached its time limit, saved its state and raised `Stopped`.
        KeyboardInterrupt: SIGINT arrived after an earlier stopping signal.
    """
    first: int | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = number
            print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    handlers_before = {number: signal.signal(number, handle) for number in STOPPING_SIGNALS}
    try:
        yield lambda: first is not None
    except Stopped as stopped:
        default = signal.SIGTERM if isinstance(stopped, OutOfTime | OtherStopped) else signal.SIGINT
        raise StoppedBySignal(str(stopped), first or default, resumable=resumable) from stopped
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """For a command that writes only at its end: report on Ctrl-C that nothing was saved.

    Raises:
        StoppedBySignal: SIGINT arrived.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        message = "nothing was saved, this command writes only at its end"
        raise StoppedBySignal(message, signal.SIGINT, resumable=False) from interrupt
