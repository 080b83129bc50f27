"""Simulates a failing file system below one folder, for this process and all processes forked from it.

The faults are those of real file systems. A call is refused (no space, a bad disk, a stale handle); a write stops
half-way; an NFS server executes a request, loses the answer and, when the request is repeated, reports that the name
exists or is missing; and the process may be killed at any of these points. The simulation never loses bytes that
`fsync` has confirmed. Linux only.
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
"""Start of every line on standard error that reports a fault."""

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
    """Decides at random whether a call fails, and how; a forked process has its own random stream."""

    def __init__(self, folder: Path, seed: str, rate: float) -> None:
        """Faults for calls on files below `folder`, each with probability `rate`; inactive before `install`."""
        self.folder, self.rate = f"{folder}{os.sep}", rate
        self._seed, self._forks = seed, 0
        self._generator = random.Random(seed)

    def install(self) -> None:
        """Replace Python's file functions by faulty ones until this process ends."""
        builtins.open = io.open = self._opening(io.open)
        for name in ("fsync", "link", "replace", "rename", "unlink"):
            setattr(os, name, self._calling(name, getattr(os, name)))
        os.register_at_fork(before=self._count_fork, after_in_child=self._reseed)

    def draw(self, operation: str, path: str) -> tuple[bool, int | str] | None:
        """Whether the fault comes after the operation, and its kind; None for no fault."""
        if not path.startswith(self.folder) or self._generator.random() >= self.rate:
            return None
        kinds = [(False, kind) for kind in _BEFORE[operation]]
        kinds += [(True, kind) for kind in _AFTER.get(operation, ())]
        return self._generator.choice(kinds)

    def part(self, size: int) -> int:
        """Number of bytes of a failing write that are written."""
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
    """A file open for writing; a write may stop half-way."""

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
    """Report a fault on standard error and raise it, or kill this process."""
    name = kind if isinstance(kind, str) else errno.errorcode[kind]
    os.write(2, f"{MARK}{operation}{' done,' if after else ''} {name}\n".encode())
    if isinstance(kind, str):
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise OSError(kind, os.strerror(kind))


def _path_of(file: Any) -> str:
    """The path of a file given by path or by descriptor."""
    if isinstance(file, int):
        return os.readlink(f"/proc/self/fd/{file}")
    return os.fsdecode(file)
