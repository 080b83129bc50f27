"""Atomic file operations. All writing goes through this module: a file appears complete or not at all.

The functions that accept a `Location` delegate URLs to `shards.storage.objects`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import xxhash

from shards.core.errors import Failed, Refused
from shards.storage import objects as object_storage
from shards.storage.paths import TEMPORARY_SUFFIX, Location, temporary_name

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


def commit_bytes(path: Location, data: bytes, exclusive: bool = False) -> bool:
    """Write a complete file and flush it to disk. Creates the folder if it is missing.

    Returns False, and writes nothing, only if `exclusive` is set and the file exists; otherwise it is replaced.

    Raises:
        Refused: the location is not writable.
        Failed: the disk is full or has an error.
    """
    if not isinstance(path, Path):
        return object_storage.commit_object(path, data, exclusive)
    return commit_file(path, lambda temporary: temporary.write_bytes(data), exclusive)


def commit_file(path: Path, write: Callable[[Path], object], exclusive: bool = False) -> bool:
    """Commit a file as `commit_bytes` does; a callback writes the content to an empty temporary file.

    The committed file has the permissions of a newly created file, whichever mode the callback sets.
    """
    temporary = temporary_name(path)
    with _translated_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                mode = os.fstat(file.fileno()).st_mode
            write(temporary)
            with open(temporary, "rb") as file:
                # safetensors creates files that only their owner can read.
                if os.fstat(file.fileno()).st_mode != mode:
                    os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            if exclusive:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
            else:
                os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return True


def remove(path: Location) -> bool:
    """Delete a file. Returns False if it does not exist."""
    if not isinstance(path, Path):
        return object_storage.remove_object(path)
    with _translated_errors("remove", path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        _sync_folder(path.parent)
    return True


def pop_bytes(path: Location) -> bytes | None:
    """Delete a file and return its content, None if it does not exist. Of concurrent callers, one gets the content.

    An object store cannot rename: there, several concurrent callers may get the content, and content that another
    process writes between the two steps is lost.
    """
    if not isinstance(path, Path):
        (content,) = read_each([path])
        if content is not None:
            remove(path)
        return content
    renamed = temporary_name(path)
    with _translated_errors("remove", path):
        try:
            os.rename(path, renamed)
        except FileNotFoundError:
            return None
        data = renamed.read_bytes()
        os.unlink(renamed)
    return data


def has_sha256(path: Location, sha256: str) -> bool:
    """True if the file exists and its content has this sha256 (hex)."""
    try:
        return sha256_file(path) == sha256
    except Failed as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise


def read_bytes(path: Location) -> bytes:
    """Read a whole file.

    Raises:
        Failed: the file is missing or cannot be read.
        Refused: reading is not permitted.
    """
    if not isinstance(path, Path):
        return object_storage.read_object(path)
    with _translated_errors("read", path):
        return path.read_bytes()


@contextmanager
def reading(path: Path) -> Iterator[FileIO]:
    """Open a local file for unbuffered reading. Errors inside the block are raised as in `read_bytes`."""
    with _translated_errors("read", path), open(path, "rb", buffering=0) as file:
        yield file


def read_each(paths: Sequence[Location]) -> Iterator[bytes | None]:
    """Content of each file, None for a missing one. Objects behind URLs are requested in batches."""
    urls = [path for path in paths if not isinstance(path, Path)]
    if urls:
        yield from object_storage.read_objects(urls)
        return
    for path in paths:
        yield read_bytes(path) if is_file(path) else None


def sha256_bytes(data: bytes | memoryview) -> str:
    """sha256 (hex) of bytes."""
    return hashlib.sha256(data).hexdigest()


def xxh3_bytes(data: bytes | memoryview) -> str:
    """XXH3-128 (hex) of bytes: detects accidental damage as reliably as sha256 and is much faster."""
    return xxhash.xxh3_128_hexdigest(data)


def sha256_file(path: Location) -> str:
    """sha256 (hex) of a file's content. Raises like `read_bytes`."""
    if not isinstance(path, Path):
        return sha256_bytes(object_storage.read_object(path))
    with _translated_errors("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file(path: Location) -> bool:
    """True if the file exists. Raises like `read_bytes`."""
    return path.is_file() if isinstance(path, Path) else object_storage.is_object(path)


def is_folder(path: Location) -> bool:
    """True if the folder exists. In an object store, a folder exists if any object name starts with it."""
    return path.is_dir() if isinstance(path, Path) else object_storage.is_prefix(path)


def list_names(folder: Location, suffix: str) -> list[str]:
    """Sorted names of the committed files with this suffix; empty if the folder does not exist."""
    if isinstance(folder, Path):
        with _translated_errors("list", folder):
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                return []
    else:
        names = object_storage.list_objects(folder)
    return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))


def remove_stale_temporaries(folder: Location, older_than_seconds: float) -> int:
    """Delete the temporary files of killed writers, and return how many were deleted.

    Younger files are kept, as they may belong to a running writer on any machine.
    """
    if not isinstance(folder, Path):
        return object_storage.remove_stale_objects(folder, older_than_seconds)
    limit = time.time() - older_than_seconds
    removed = 0
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        # Another process, or the writer itself, may delete the file first.
        with _translated_errors("remove", path), suppress(FileNotFoundError):
            if path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
    return removed


def is_forbidden(error: OSError) -> bool:
    """True if the operation is not permitted; any other error may be temporary, and a retry may succeed."""
    return error.errno in _NOT_ALLOWED


def refuse_unwritable(folder: Path) -> None:
    """Check that a folder is writable by creating and deleting a file. Raises as `commit_bytes`."""
    probe = folder / ".probe"
    commit_bytes(probe, b"")
    remove(probe)


def _sync_folder(folder: Path) -> None:
    """Flush a folder: a new name is durable only after that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated_errors(action: str, path: Path) -> Iterator[None]:
    """Convert OSError to `Refused` or `Failed` with a message for the user."""
    try:
        yield
    except FileNotFoundError as error:
        raise Failed(f"cannot {action} {path}: it is missing") from error
    except OSError as error:
        problem = f"cannot {action} {path}: {error.strerror or error}"
        if error.errno in _OUT_OF_SPACE:
            raise Failed(
                f"cannot {action} {path}: no space left there; free some and run the same command again"
            ) from error
        if is_forbidden(error):
            raise Refused(f"{problem}; choose a place where you may {action}") from error
        raise Failed(problem) from error
