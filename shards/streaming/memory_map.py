"""Files of this host, mapped side by side into one range of addresses: one array holds them all, and nothing is copied.

The processes that map a file share the system's one copy of it. What that costs: a file cut short while it is mapped
ends whoever reads beyond its end (SIGBUS), as a disk does that fails. So ask `is_unchanged` before reading and after:
committed shards are replaced and never written to, and whoever writes to one all the same is found out.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from io import FileIO

import numpy as np

from shards.core.errors import Failed

_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value

# Python's own mmap chooses the address itself.
_map = ctypes.CDLL(None, use_errno=True).mmap
_map.restype = ctypes.c_void_p
_map.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
)


class MappedFiles:
    """Slots for files.

    Attributes:
        data: (capacity, num_bytes) uint8, read-only; a slot without a file reads as zeros.
    """

    def __init__(self, capacity: int, num_bytes: int) -> None:
        """Takes addresses, and no memory.

        Args:
            capacity: number of slots.
            num_bytes: size of the largest file.
        """
        stride = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        # Gives all of its addresses back when the last array on it goes, those of the files too.
        addresses = mmap.mmap(
            -1, capacity * stride, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ
        )
        self.data = np.frombuffer(addresses, dtype=np.uint8).reshape(capacity, stride)[:, :num_bytes]
        self._states: dict[int, _State] = {}

    def put(self, slot: int, file: FileIO, num_bytes: int) -> os.stat_result:
        """Maps a file into a slot, in place of the one that is there; the file may be closed.

        Args:
            slot: where.
            file: open for reading.
            num_bytes: that it should have, at most as many as a slot.

        Returns:
            The file's status, from which `is_unchanged` tells a change.

        Raises:
            Failed: it has another size, or its file system maps no files.
        """
        state = _State(file)
        if state.status.st_size != num_bytes:
            raise Failed(f"holds {state.status.st_size} bytes where {num_bytes} were committed")
        found = _map(
            self.data[slot].ctypes.data,
            num_bytes,
            mmap.PROT_READ,
            # All pages at once, where the system can: one by one they would cost more than reading.
            mmap.MAP_PRIVATE | _MAP_FIXED | getattr(mmap, "MAP_POPULATE", 0),
            file.fileno(),
            0,
        )
        if found == _FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise Failed(f"cannot be mapped into memory: {reason}; copy the data set to a local disk")
        self._states[slot] = state
        return state.status

    def is_unchanged(self, slot: int) -> bool:
        """Whether a slot's file is as it was when it was put there."""
        return self._states[slot].is_unchanged()


class _State:
    """A file, held open, and its status at the beginning."""

    def __init__(self, file: FileIO) -> None:
        self._descriptor = os.dup(file.fileno())
        self.status = os.fstat(self._descriptor)

    def is_unchanged(self) -> bool:
        now = os.fstat(self._descriptor)
        return (now.st_size, now.st_mtime_ns) == (self.status.st_size, self.status.st_mtime_ns)

    def __del__(self) -> None:
        # There is none where the system had no more of them.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)
