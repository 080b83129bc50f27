"""File locks between processes of one host. The operating system releases them when the holder exits."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shards.core.errors import Refused


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for an exclusive lock on a file, which is created if missing, and hold it during the block.

    Raises `Refused` if it cannot be opened or locked.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a+b"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise Refused(f"cannot lock {path}: {error.strerror}; choose a writable folder on a local disk") from error
        yield
