"""A file system that fails, for this process and all that are forked from it: below one folder, any call may.

It does what file systems do. A call is refused (no space, a bad disk, a stale handle); a write stops half-way; an NFS
server does what it was asked, loses the answer and, asked again, says that the name is taken or gone; and the process
may be killed at any of these points, as when its machine stops. It never reports success for bytes that are not there:
what `fsync` has confirmed stays. Linux only.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "injected: "
"""What every line that tells of a fault on standard error begins with."""

KILLED = "killed"
_BEFORE: dict[str, tuple[int | str, ...]] = {
    "open to read": (errno.EIO, errno.ESTALE),
    "open to write": (errno.ENOSPC, errno.EIO, KILLED),
    "write": (errno.ENOSPC, errno.EIO, KILLED),
    "fsync": (errno.ENOSPC, errno.EIO, KILLED),
    "link": (errno.ENOSPC, errno.EIO, KILLED),
    "replace": (errno.ENOSPC, errno.EIO, KILLED),
    "rename": (errno.EIO, KILLED),
    "unlink": (errno.EIO, KILLED),
}
_AFTER: dict[str, tuple[int | str, ...]] = {
    "fsync": (KILLED,),
    "link": (errno.EEXIST, errno.EIO, KILLED),
    "replace": (errno.ENOENT, errno.EIO, KILLED),
    "rename": (errno.ENOENT, KILLED),
    "unlink": (errno.ENOENT, KILLED),
}


class Faults:
    """Draws for every call whether it fails, and how; a forked process draws on its own."""

    def __init__(self, folder: Path, seed: str, rate: float) -> None:
        """Faults of calls on files below `folder`, each with probability `rate`; none before `install`."""
        self.folder, self.rate = f"{folder}{os.sep}", rate
        self._seed, self._forks = seed, 0
        self._generator = random.Random(seed)

    def install(self) -> None:
        """Puts the faulty calls in place of Python's own, for the rest of this process's life."""
        builtins.open = io.open = self._opening(io.open)
        for name in ("fsync", "link", "replace", "rename", "unlink"):
            setattr(os, name, self._calling(name, getattr(os, name)))
        os.register_at_fork(before=self._count_fork, after_in_child=self._reseed)

    def draw(self, operation: str, path: str) -> tuple[bool, int | str] | None:
        """Whether the fault comes after the operation, and which it is; None where there is none."""
        if not path.startswith(self.folder) or self._generator.random() >= self.rate:
            return None
        kinds = [(False, kind) for kind in _BEFORE[operation]]
        kinds += [(True, kind) for kind in _AFTER.get(operation, ())]
        return self._generator.choice(kinds)

    def part(self, size: int) -> int:
        """How much of a write gets through."""
        return self._generator.randrange(size) if size else 0

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            path = _path_of(file)
            operation = "open to read" if mode in {"r", "rb"} else "open to write"
            if fault := self.draw(operation, path):
                fail(operation, *fault)
            stream = call(file, mode, *arguments, **keywords)
            writes = operation == "open to write" and path.startswith(self.folder)
            return FaultyFile(stream, path, self) if writes else stream

        return opened

    def _calling(self, operation: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(file: Any, *arguments: Any, **keywords: Any) -> Any:
            fault = self.draw(operation, _path_of(file))
            if fault is None:
                return call(file, *arguments, **keywords)
            after, kind = fault
            if after:
                call(file, *arguments, **keywords)
            return fail(operation, after, kind)

        return called

    def _count_fork(self) -> None:
        self._forks += 1

    def _reseed(self) -> None:
        self._seed, self._forks = f"{self._seed}/{self._forks}", 0
        self._generator = random.Random(self._seed)


class FaultyFile:
    """A file open for writing, whose writes may stop half-way."""

    def __init__(self, stream: Any, path: str, faults: Faults) -> None:
        self._stream, self._path, self._faults = stream, path, faults

    def write(self, data: Any) -> int:
        if fault := self._faults.draw("write", self._path):
            self._stream.write(data[: self._faults.part(len(data))])
            self._stream.flush()
            fail("write", *fault)
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> FaultyFile:
        self._stream.__enter__()
        return self

    def __exit__(self, *exception: Any) -> Any:
        return self._stream.__exit__(*exception)


def fail(operation: str, after: bool, kind: int | str) -> None:
    """Tells of a fault on standard error and lets it happen."""
    name = kind if isinstance(kind, str) else errno.errorcode[kind]
    os.write(2, f"{MARK}{operation}{' done,' if after else ''} {name}\n".encode())
    if isinstance(kind, str):
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise OSError(kind, os.strerror(kind))


def _path_of(file: Any) -> str:
    """The path of what a call is about: given as such, or as a descriptor."""
    if isinstance(file, int):
        return os.readlink(f"/proc/self/fd/{file}")
    return os.fsdecode(file)
