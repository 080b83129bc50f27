"""Locks between processes of one host that end with their holder, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.core.errors import Refused


@contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """Waits for a lock file, making it where there is none, and holds it while the block runs.

    Yields:
        The file, for what its holders leave to each other.

    Raises:
        Refused: the file cannot be opened or locked there.
    """
    with _taken(path) as file:
        yield file


def _taken(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise Refused(
            f"cannot lock {path}: {error.strerror}; choose a folder of yours on a local disk"
        ) from error
    return file
