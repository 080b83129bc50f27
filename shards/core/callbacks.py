"""Types of the callbacks that long-running functions accept."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int, str], None]
"""Progress callback: (units done, units in total, note). Units that an earlier run finished count as done."""

ShouldStop = Callable[[], bool]
"""Called between units of work. When it returns True, the work saves its finished units and raises `Stopped`."""

Notify = Callable[[str], None]
"""Shows one message to the user while the work continues."""
