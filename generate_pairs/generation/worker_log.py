"""Log files of the worker processes, from which the cause of a worker's death can be read.

Each process that generates shards writes one file: the shards that it begins and ends, and the stack of a crash.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from shards.core.errors import Failed, Refused
from shards.storage.files import is_forbidden

QUOTED_LINES = 6


@contextmanager
def log_shard(folder: Path, shard: str) -> Iterator[None]:
    """Write the begin and the end of a shard to this process's log. The folder is created if missing.

    Raises:
        Refused: the folder is not writable.
        Failed: the disk is full or broken.
    """
    log = _log(folder)
    began = time.monotonic()
    _write(log, f"begins {shard}")
    try:
        yield
    except BaseException:
        _write(log, f"fails {shard}\n{traceback.format_exc().rstrip()}")
        raise
    _write(log, f"ends {shard} after {time.monotonic() - began:.1f} s")


def last_lines(folder: Path, shard: str) -> tuple[Path, Sequence[str]] | None:
    """The log of the last worker that died during a shard, and the log's last lines.

    None if no log in the folder begins the shard without ending it: the worker's log is on another machine.
    """
    deaths = []
    for path in folder.glob("*.log"):
        lines = path.read_text("utf-8", errors="replace").splitlines()
        events = [line for line in lines if line.endswith(f" begins {shard}") or f" ends {shard} " in line]
        if events and events[-1].endswith(f" begins {shard}"):
            deaths.append((path.stat().st_mtime_ns, path, lines[-QUOTED_LINES:]))
    return max(deaths)[1:] if deaths else None


@lru_cache(maxsize=1)
def _log(folder: Path) -> TextIO:
    """This process's log in a folder; a crash of the interpreter also writes its stack there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Stays open until the process ends.
        log = (folder / f"{socket.gethostname()}-{os.getpid()}.log").open("a", encoding="utf-8")
    except OSError as error:
        problem = f"{socket.gethostname()} cannot write its log into {folder}: {error.strerror}"
        if is_forbidden(error):
            raise Refused(f"{problem}; set cluster.log_folder to a folder that every worker may write to") from error
        raise Failed(f"{problem}; run the same command again when this is fixed") from error
    faulthandler.enable(log)
    return log


def _write(log: TextIO, text: str) -> None:
    log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    # The process may die at any moment.
    log.flush()
