"""Remote shards on this host's disk, within a limit of bytes, fetched once for all processes that read them."""

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


def default_folder() -> Path:
    """Where shards are kept: `${TOKENLEAP_HOME:-~/.cache/tokenleap}/shards`."""
    return Path(os.environ.get("TOKENLEAP_HOME", "~/.cache/tokenleap")).expanduser() / "shards"


class ShardCache:
    """Files by the sha256 of their content, so that neither another data set nor a newer shard is mistaken for one.

    At no moment do the files hold more than the limit. The least recently used goes first; whoever has it open
    reads on.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """A cache, shared by all that name the same folder.

        Args:
            folder: made where there is none.
            max_bytes: what all files may hold together; each must be smaller.

        Raises:
            Refused: the folder cannot be written to.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        with locked(self._lock("write")):
            remove_stale_temporaries(folder, 0)

    def open(self, sha256: str, fetch: Callable[[], bytes]) -> FileIO:
        """A shard, open for reading; fetched where it is not there, while others that want it wait.

        Args:
            sha256: of its content (hex).
            fetch: reads it where it comes from.

        Raises:
            Failed: what was fetched has another sha256, or the disk is full; besides, whatever `fetch` raises.
            Refused: the file cannot be read, or the folder not be written to.
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
                # By hand: most systems are told not to note when a file was read.
                os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))
                return file

    def drop(self, sha256: str) -> None:
        """Takes a shard away that turned out not to be what was put there."""
        with suppress(FileNotFoundError):
            self._path(sha256).unlink()

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}{_SUFFIX}"

    def _fetch_once(self, path: Path, sha256: str, fetch: Callable[[], bytes]) -> None:
        # Few lock files for any number of shards: two that share one wait for each other, and nothing else.
        with locked(self._lock(sha256[:2])):
            if path.exists():
                return
            data = fetch()
            if (found := sha256_bytes(data)) != sha256:
                raise Failed(f"its sha256 is {found} where {sha256} was committed")
            # All writing happens under one lock, so the sum is known and whatever is temporary is a dead writer's.
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
