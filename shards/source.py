"""Where the bytes of shards come from: the data set's folder, or this host's cache of a remote one; hash checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import cast

from shards.cache import ShardCache
from shards.errors import Failed
from shards.ledger import Ledger
from shards.locations import Location
from shards.reader import check_digest
from shards.record import Array
from shards.rows import ManifestRow, shard_path
from shards.storage import read_bytes, reading

_PIECE = 2**18
"""Bytes read at a time: they are hashed before they have left the processor's cache."""


class ShardSource:
    """The files of a data set's shards; each is hashed when it is first read, and again when it has changed."""

    def __init__(self, root: Location, ledger: Ledger, cache: ShardCache | None) -> None:
        """The shards below a root.

        Args:
            root: the data set's folder.
            ledger: remembers which files were hashed.
            cache: keeps the shards of a root that is not on a disk of this host; None for one that is.
        """
        self.root = root
        self._ledger = ledger
        self._cache = cache

    def path(self, row: ManifestRow) -> Location:
        """Where the tar of a row lies."""
        return shard_path(self.root, row.shard)

    def read_into(self, row: ManifestRow, buffer: Array, inspect: Callable[[], None]) -> bool:
        """Fills a buffer (uint8) with a shard's file.

        Args:
            row: the shard's row in the manifest.
            buffer: as large as the row says that the file is.
            inspect: looks at the buffer of a file that was hashed just now; where it raises, nothing is remembered.

        Returns:
            Whether the file was hashed and inspected, or had been before.

        Raises:
            Failed: the file is missing or is not, byte for byte, what its writer committed.
        """
        path = self.path(row)
        if self._cache is not None:
            return self._read_cached(self._cache, path, row, buffer, inspect)
        on_disk = cast(Path, path)
        with reading(on_disk) as file:
            return self._read(file, os.path.abspath(on_disk), row, buffer, inspect)

    def _read_cached(
        self, cache: ShardCache, path: Location, row: ManifestRow, buffer: Array, inspect: Callable[[], None]
    ) -> bool:
        for last in (False, True):
            with cache.open(row.sha256, lambda: read_bytes(path)) as file:
                try:
                    return self._read(file, f"{cache.folder}/{row.sha256}", row, buffer, inspect)
                except Failed as error:
                    if last:
                        raise Failed(f"its copy in {cache.folder}: {error}") from error
            # It was right when it was put there: this disk has damaged it.
            cache.drop(row.sha256)
        return False

    def _read(
        self, file: FileIO, name: str, row: ManifestRow, buffer: Array, inspect: Callable[[], None]
    ) -> bool:
        status = os.fstat(file.fileno())
        if status.st_size != row.num_bytes:
            raise Failed(f"holds {status.st_size} bytes where {row.num_bytes} were committed")

        def read_and_hash() -> None:
            digest = hashlib.sha256()
            _fill(file, status, buffer, digest.update)
            check_digest(row, digest.hexdigest())
            inspect()

        hashed = self._ledger.once(name, status, row.sha256, read_and_hash)
        if not hashed:
            _fill(file, status, buffer, lambda _: None)
        return hashed


def _fill(file: FileIO, status: os.stat_result, buffer: Array, each: Callable[[memoryview], object]) -> None:
    """Reads a file whose status was `status` when it was opened, and shows every piece to `each` while it is warm."""
    whole, filled = buffer.data, 0
    while filled < len(whole) and (count := file.readinto(whole[filled : filled + _PIECE])):
        each(whole[filled : filled + count])
        filled += count
    if filled < len(whole) or os.fstat(file.fileno()).st_mtime_ns != status.st_mtime_ns:
        raise Failed("it was written to while it was read")
