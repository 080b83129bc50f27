"""A cache of remote shards on this host's disk, limited in bytes and shared by all processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from shards.core.errors import Failed, Refused
from shards.storage.files import commit_bytes, remove_stale_temporaries, sha256_bytes
from shards.storage.locks import locked

DEFAULT_BYTES = 8 * 2**30
_SUFFIX = ".tar"


class ShardCache:
    """Files named by the sha256 of their content, so that shards of different data sets and versions never mix.

    The files never hold more than the limit together; each must be smaller. The least recently used file is deleted
    first; a process that has it open can still read it. Raises `Refused` if the folder cannot be written to.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        with locked(self._lock("write")):
            remove_stale_temporaries(folder, 0)

    def open(self, sha256: str, fetch: Callable[[], bytes]) -> FileIO:
        """A shard's file, open for reading. A missing one is downloaded by one process while the others wait.

        Raises:
            Failed: the content that `fetch` returns has another sha256, or the disk is full.
            Refused: the file cannot be read, or the folder cannot be written to.
        """
        path = self._path(sha256)
        while True:
            try:
                file = open(path, "rb", buffering=0)  # noqa: SIM115
            except FileNotFoundError:
                self._fetch_once(path, sha256, fetch)
            except OSError as error:
                raise Refused(f"cannot read {path}: {error.strerror}; choose another cache_dir") from error
            else:
                # Explicitly, because file systems are usually mounted without access times.
                os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))
                return file

    def drop(self, sha256: str) -> None:
        """Delete a shard whose content is damaged."""
        self._path(sha256).unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}{_SUFFIX}"

    def _fetch_once(self, path: Path, sha256: str, fetch: Callable[[], bytes]) -> None:
        # 256 lock files for any number of shards; two shards that share a lock only wait for each other.
        with locked(self._lock(sha256[:2])):
            if path.exists():
                return
            data = fetch()
            if (found := sha256_bytes(data)) != sha256:
                raise Failed(f"its sha256 is {found}, but {sha256} was committed")
            # One lock for all writes: the total size is known, and temporary files belong to killed writers.
            with locked(self._lock("write")):
                remove_stale_temporaries(self.folder, 0)
                self._make_room(len(data))
                commit_bytes(path, data)

    def _lock(self, name: str) -> Path:
        return self.folder / "locks" / name

    def _make_room(self, num_bytes: int) -> None:
        kept = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                status = path.stat()
                kept.append((status.st_atime_ns, status.st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total + num_bytes <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
