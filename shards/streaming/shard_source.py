"""Opens the files of shards: in the data set's folder, or in this host's cache of a remote data set."""

from __future__ import annotations

from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TypeVar, cast

from shards.core.errors import Failed
from shards.dataset.manifest_row import ManifestRow, shard_path
from shards.storage.files import read_bytes, reading
from shards.storage.paths import Location
from shards.streaming.download_cache import ShardCache

Loaded = TypeVar("Loaded")


class ShardSource:
    """The files of a data set's shards. The cache stores those of a remote root; it is None for a local root."""

    def __init__(self, root: Location, cache: ShardCache | None) -> None:
        self.root = root
        self._cache = cache

    def path(self, row: ManifestRow) -> Location:
        """Path or URL of a row's tar."""
        return shard_path(self.root, row.shard)

    def load(self, row: ManifestRow, load: Callable[[FileIO], Loaded]) -> Loaded:
        """Return `load(file)` of a shard's file, open for reading; the file is closed afterwards.

        A copy in the cache that `load` rejects with `Failed` is deleted and downloaded once more.
        """
        path = self.path(row)
        if self._cache is None:
            with reading(cast(Path, path)) as file:
                return load(file)
        with self._cache.open(row.sha256, lambda: read_bytes(path)) as file:
            try:
                return load(file)
            except Failed:
                # The copy had the right hash when it was stored: this disk damaged it.
                self._cache.drop(row.sha256)
        with self._cache.open(row.sha256, lambda: read_bytes(path)) as file:
            try:
                return load(file)
            except Failed as error:
                raise Failed(f"its copy in {self._cache.folder}: {error}") from error
