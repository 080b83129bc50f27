"""A queue of work units that ends early when a stop is requested or time runs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from shards.core.callbacks import ShouldStop

Unit = TypeVar("Unit")
"""A work unit of stage one, or a cell of an ablation."""


class WorkQueue(Generic[Unit]):
    """The units that no worker has started.

    Attributes:
        is_stopped: a stop was requested while units were left.
        past_deadline: the next unit would not end in time.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        should_stop: ShouldStop,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        wait_for_running: bool = True,
    ) -> None:
        """
        Args:
            should_stop: called before every unit.
            deadline: time of `clock`, in seconds, at which the last unit should have ended.
            wait_for_running: after a stop is requested. Pass False for long units that can resume.
        """
        self._units: Iterator[Unit] = iter(units)
        self._num_left = len(units)
        self._should_stop, self._deadline, self._clock = should_stop, deadline, clock
        self._wait_for_running = wait_for_running
        self._longest_seconds = 0.0
        self.is_stopped = self.past_deadline = False

    def record_duration(self, seconds: float) -> None:
        """Record how long a unit took: each further unit is expected to take as long as the longest so far."""
        self._longest_seconds = max(self._longest_seconds, seconds)

    @property
    def is_exhausted(self) -> bool:
        """Whether `pop` returns no further unit."""
        if self._num_left and not (self.is_stopped or self.past_deadline):
            self.is_stopped = self._should_stop()
            self.past_deadline = self._deadline is not None and self._clock() + self._longest_seconds >= self._deadline
        return not self._num_left or self.is_stopped or self.past_deadline

    @property
    def cancelled(self) -> bool:
        """Whether the running units should be abandoned."""
        if not self._wait_for_running and not self.is_stopped:
            self.is_stopped = self._should_stop()
        return not self._wait_for_running and self.is_stopped

    def pop(self) -> Unit | None:
        """The next unit, or None if no further unit may start."""
        if self.is_exhausted:
            return None
        self._num_left -= 1
        return next(self._units)
