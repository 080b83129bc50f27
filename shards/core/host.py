"""Facts about this host."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def home_folder() -> Path:
    """Folder of this user's caches and imported teachers: `${TOKENLEAP_HOME:-~/.cache/tokenleap}`."""
    return Path(os.environ.get("TOKENLEAP_HOME", "~/.cache/tokenleap")).expanduser()
