"""Handing out units of work: one after the other, until there are none, a stop is asked for, or the time is used up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from shards.core.callbacks import ShouldStop

Unit = TypeVar("Unit")
"""What is handed out: a work unit of stage one, a cell of an ablation."""


class WorkQueue(Generic[Unit]):
    """The units that nobody works on yet.

    Attributes:
        is_stopped: a stop was asked for while there were units left.
        past_deadline: the next unit would not have ended in time.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        should_stop: ShouldStop,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        waits: bool = True,
    ) -> None:
        """
        Args:
            units: what is to be made, in order.
            should_stop: asked before every unit.
            deadline: when, by `clock`, the last unit should have ended; None for never.
            clock: seconds from any origin.
            waits: whether the units under way are waited for once a stop is asked for. Long ones, which go on from
                where they were, need not be.
        """
        self._waits = waits
        self._units: Iterator[Unit] = iter(units)
        self._left = len(units)
        self._should_stop, self._deadline, self._clock = should_stop, deadline, clock
        self._longest = 0.0
        self.is_stopped = self.past_deadline = False

    def record_duration(self, seconds: float) -> None:
        """One unit has ended: the next ones are expected to take as long as the longest so far."""
        self._longest = max(self._longest, seconds)

    @property
    def is_over(self) -> bool:
        """Whether no further unit will be handed out."""
        if self._left and not (self.is_stopped or self.past_deadline):
            self.is_stopped = self._should_stop()
            self.past_deadline = (
                self._deadline is not None and self._clock() + self._longest >= self._deadline
            )
        return not self._left or self.is_stopped or self.past_deadline

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the units under way any more."""
        if not self._waits and not self.is_stopped:
            self.is_stopped = self._should_stop()
        return not self._waits and self.is_stopped

    def pop(self) -> Unit | None:
        """The next unit, None when there is none to begin."""
        if self.is_over:
            return None
        self._left -= 1
        return next(self._units)
