"""What long work talks to while it runs: whoever shows how far it has come, and whoever may want it to end."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int, str], None]
"""Told (units done, units in all, a note); what an earlier run finished counts as done."""

ShouldStop = Callable[[], bool]
"""Asked between units of work; once it says yes, the work keeps what is finished and raises `Stopped`."""

Notify = Callable[[str], None]
"""Told a sentence that a person should read once, while the work goes on."""
