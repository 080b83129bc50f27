"""Where the bytes of shards come from: the data set's folder, or this host's cache of a remote one; hash checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import cast

from shards.core.errors import Failed
from shards.dataset.manifest_row import ManifestRow, shard_path
from shards.dataset.reader import check_digest
from shards.storage.files import read_bytes, reading
from shards.storage.paths import Location
from shards.streaming.download_cache import ShardCache
from shards.streaming.hash_ledger import HashCache
from shards.streaming.memory_map import MappedFiles


class ShardSource:
    """The files of a data set's shards; each is hashed when it is first read, and again when it has changed."""

    def __init__(self, root: Location, hash_cache: HashCache, cache: ShardCache | None) -> None:
        """The shards below a root.

        Args:
            root: the data set's folder.
            hash_cache: remembers which files were hashed.
            cache: keeps the shards of a root that is not on a disk of this host; None for one that is.
        """
        self.root = root
        self._hash_cache = hash_cache
        self._cache = cache

    def path(self, row: ManifestRow) -> Location:
        """Where the tar of a row lies."""
        return shard_path(self.root, row.shard)

    def map(self, row: ManifestRow, files: MappedFiles, slot: int, inspect: Callable[[], None]) -> bool:
        """Maps a shard's file and holds it against its row.

        Args:
            row: the shard's row in the manifest.
            files: where it is mapped.
            slot: which of the places there.
            inspect: looks at a file that was hashed just now; where it raises, nothing is remembered.

        Returns:
            Whether the file was hashed and inspected, or had been before.

        Raises:
            Failed: the file is missing or is not, byte for byte, what its writer committed.
        """
        path = self.path(row)

        def check() -> None:
            check_digest(row, files.data[slot, : row.num_bytes].data)
            inspect()
            if not files.is_unchanged(slot):
                raise Failed("it was written to while it was read")

        def read(file: FileIO, name: str) -> bool:
            return self._hash_cache.once(name, files.put(slot, file, row.num_bytes), row.sha256, check)

        if self._cache is not None:
            return self._read_cached(self._cache, path, row, read)
        on_disk = cast(Path, path)
        with reading(on_disk) as file:
            return read(file, os.path.abspath(on_disk))

    def _read_cached(
        self, cache: ShardCache, path: Location, row: ManifestRow, read: Callable[[FileIO, str], bool]
    ) -> bool:
        for last in (False, True):
            with cache.open(row.sha256, lambda: read_bytes(path)) as file:
                try:
                    return read(file, f"{cache.folder}/{row.sha256}")
                except Failed as error:
                    if last:
                        raise Failed(f"its copy in {cache.folder}: {error}") from error
            # It was right when it was put there: this disk has damaged it.
            cache.drop(row.sha256)
        return False
