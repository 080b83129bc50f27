"""Stopping on request: after one signal the step under way ends and is saved, a second Ctrl-C is at once."""

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
    """Stopped by which signal, and whether the same command goes on from there or begins anew."""

    def __init__(self, message: str, signal_number: int, *, resumable: bool = True) -> None:
        super().__init__(message)
        self.exit_code = 130 if signal_number == signal.SIGINT else 143
        self.resumable = resumable


class _Request:
    """What has been asked for so far."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def handle(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            if signal_number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal_number = signal_number
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)


@contextmanager
def stopping(*, resumable: bool = True) -> Iterator[ShouldStop]:
    """Turns SIGINT, SIGTERM and SIGUSR1 into a flag while the block runs.

    Args:
        resumable: whether the same command goes on from what is kept, or begins anew.

    Yields:
        `should_stop`, for the long functions to poll.

    Raises:
        StoppedBySignal: a long function saw the flag, or the end of its time, saved its state and raised `Stopped`.
        KeyboardInterrupt: SIGINT came when a stop had been asked for already.
    """
    request = _Request()
    before = {number: signal.signal(number, request.handle) for number in STOPPING_SIGNALS}
    try:
        yield lambda: request.signal_number is not None
    except Stopped as stopped:
        ended_by = signal.SIGTERM if isinstance(stopped, OutOfTime | OtherStopped) else signal.SIGINT
        number = request.signal_number or ended_by
        raise StoppedBySignal(str(stopped), number, resumable=resumable) from stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """For a command that writes once, at its end: Ctrl-C inside the block says that nothing is kept.

    Raises:
        StoppedBySignal: SIGINT came.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        message = "nothing is kept, this command writes at its end only"
        raise StoppedBySignal(message, signal.SIGINT, resumable=False) from interrupt
