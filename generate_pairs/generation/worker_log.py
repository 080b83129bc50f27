"""What a worker leaves behind for whoever asks why it died: a log of its own, in a folder that outlives it.

Every process that makes shards writes one file there: which shard it begins and ends, and, should it crash, where.
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
def logged(folder: Path, shard: str) -> Iterator[None]:
    """Notes in this process's log that a shard begins, and how it ends.

    Args:
        folder: where the logs of all workers lie; made if it is not there.
        shard: its name.

    Raises:
        Refused: the folder cannot be written to.
        Failed: its disk is full, or broke.
    """
    log = _log(folder)
    began = time.monotonic()
    _note(log, f"begins {shard}")
    try:
        yield
    except BaseException:
        _note(log, f"fails {shard}\n{traceback.format_exc().rstrip()}")
        raise
    _note(log, f"ends {shard} after {time.monotonic() - began:.1f} s")


def last_lines(folder: Path, shard: str) -> tuple[Path, Sequence[str]] | None:
    """The log of the worker that died last while it made a shard, and the log's last lines.

    None where no log in the folder begins the shard without ending it: the worker wrote it on another machine.
    """
    deaths = []
    for path in folder.glob("*.log"):
        lines = path.read_text("utf-8", errors="replace").splitlines()
        told = [line for line in lines if line.endswith(f" begins {shard}") or f" ends {shard} " in line]
        if told and told[-1].endswith(f" begins {shard}"):
            deaths.append((path.stat().st_mtime_ns, path, lines[-QUOTED_LINES:]))
    if not deaths:
        return None
    _, path, lines = max(deaths)
    return path, lines


@lru_cache(maxsize=1)
def _log(folder: Path) -> TextIO:
    """This process's log in a folder; a crash of the interpreter writes its stack there, too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Kept open as long as the process lives.
        log = (folder / f"{socket.gethostname()}-{os.getpid()}.log").open("a", encoding="utf-8")
    except OSError as error:
        trouble = f"{socket.gethostname()} cannot write its log into {folder}: {error.strerror}"
        if is_forbidden(error):
            way = "set cluster.log_folder to a folder that every worker may write to"
            raise Refused(f"{trouble}; {way}") from error
        raise Failed(f"{trouble}; run the same command again when it is mended") from error
    faulthandler.enable(log)
    return log


def _note(log: TextIO, text: str) -> None:
    log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    # At once: the next thing to happen may be the end of this process.
    log.flush()
