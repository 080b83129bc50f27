"""Files that appear whole or not at all: all writing goes through here, and may be killed anywhere.

What is said here of a file holds of an object behind a URL, too, which `shards.storage.objects` looks after.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import xxhash

from shards.core.errors import Failed, Refused
from shards.storage import objects as object_storage
from shards.storage.paths import Location

TEMPORARY_SUFFIX = ".tmp"
_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}


def commit_bytes(path: Location, data: bytes, exclusive: bool = False) -> bool:
    """Puts a file under its name, complete and on disk, making its folder where there is none.

    Args:
        path: the final name.
        data: the whole content.
        exclusive: leave alone what already stands under the name, instead of replacing it.

    Returns:
        Whether the file was put there; only False when `exclusive` and the name was taken.

    Raises:
        Refused: the place cannot be written to.
        Failed: the disk is full, or broke.
    """
    if not isinstance(path, Path):
        return object_storage.commit_object(path, data, TEMPORARY_SUFFIX, exclusive)
    temporary = _temporary(path)
    with _explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
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
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    return True


def commit_file(path: Path, write: Callable[[Path], object]) -> None:
    """Puts a file under its name, complete and on disk, that something else writes.

    Args:
        path: the final name; what stands there is replaced.
        write: is called with the name of an empty file, and must leave its own there; whatever mode that has, the
            file is as readable to others as any new one.

    Raises:
        Refused, Failed: as `commit_bytes`.
    """
    temporary = _temporary(path)
    with _explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                mode = os.fstat(file.fileno()).st_mode
            write(temporary)
            with open(temporary, "rb") as file:
                # safetensors makes files that nobody else may read.
                if os.fstat(file.fileno()).st_mode != mode:
                    os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def remove(path: Location) -> bool:
    """Takes a file away; whether there was one."""
    if not isinstance(path, Path):
        return object_storage.remove_object(path)
    with _explained("remove", path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        _sync_folder(path.parent)
    return True


def take_away(path: Location) -> bytes | None:
    """Removes a file and returns what it held, None where there was none; of several who ask one gets it."""
    if not isinstance(path, Path):
        return object_storage.take_object(path)
    aside = _temporary(path)
    with _explained("remove", path):
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return None
        data = aside.read_bytes()
        os.unlink(aside)
    return data


def holds(path: Location, sha256: str) -> bool:
    """Whether there is a file of this name and its content has this sha256 (hex)."""
    if not isinstance(path, Path):
        return object_storage.holds_object(path, sha256)
    with _explained("read", path):
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except FileNotFoundError:
            return False


def read_bytes(path: Location) -> bytes:
    """The whole content of a file.

    Raises:
        Failed: it is missing, or cannot be read.
        Refused: reading it is not allowed.
    """
    if not isinstance(path, Path):
        return object_storage.read_object(path)
    with _explained("read", path):
        return path.read_bytes()


@contextmanager
def reading(path: Path) -> Iterator[FileIO]:
    """A file of this host, open and unbuffered. Raises like `read_bytes`, in the block too."""
    with _explained("read", path), open(path, "rb", buffering=0) as file:
        yield file


def read_each(paths: Sequence[Location]) -> Iterator[bytes | None]:
    """The content of each file, None where there is none; of a URL's many are asked for at a time.

    Raises:
        Failed, Refused: as `read_bytes`.
    """
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
    """XXH3-128 (hex) of bytes: many times as fast as sha256, and as sure against chance, if not against intent."""
    return xxhash.xxh3_128_hexdigest(data)


def sha256_file(path: Location) -> str:
    """sha256 (hex) of a file's content. Raises like `read_bytes`."""
    if not isinstance(path, Path):
        return sha256_bytes(object_storage.read_object(path))
    with _explained("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file(path: Location) -> bool:
    """Whether there is a file of this name. Raises like `read_bytes`."""
    return path.is_file() if isinstance(path, Path) else object_storage.is_object(path)


def is_folder(path: Location) -> bool:
    """Whether there is a folder of this name; an object store has one where it holds anything below the name."""
    return path.is_dir() if isinstance(path, Path) else object_storage.is_prefix(path)


def list_names(folder: Location, suffix: str) -> list[str]:
    """Sorted names of the committed files with this suffix; none where the folder is not there."""
    if isinstance(folder, Path):
        with _explained("list", folder):
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                return []
    else:
        names = object_storage.list_objects(folder)
    return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))


def remove_stale_temporaries(folder: Location, older_than_seconds: float) -> int:
    """Removes what killed writers left in a folder; how many files that were.

    Args:
        folder: where `commit_bytes` wrote.
        older_than_seconds: younger ones may belong to a writer that lives, on any machine.
    """
    if not isinstance(folder, Path):
        return object_storage.remove_stale_objects(folder, TEMPORARY_SUFFIX, older_than_seconds)
    limit = time.time() - older_than_seconds
    removed = 0
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        # Another cleaner, or the writer itself, may be faster.
        with _explained("remove", path), suppress(FileNotFoundError):
            if path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
    return removed


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody else uses and nobody takes for a finished file."""
    return path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"


def _sync_folder(folder: Path) -> None:
    """A new name is on disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_forbidden(error: OSError) -> bool:
    """Whether the system will not have it, there or ever; anything else may pass, and may be tried again."""
    return error.errno in _NOT_ALLOWED


@contextmanager
def _explained(action: str, path: Path) -> Iterator[None]:
    """Turns the system's errors into the two kinds that people see."""
    try:
        yield
    except FileNotFoundError as error:
        raise Failed(f"cannot {action} {path}: it is missing") from error
    except OSError as error:
        if error.errno in _OUT_OF_SPACE:
            raise Failed(
                f"cannot {action} {path}: no space left there; free some and run the same command again"
            ) from error
        if is_forbidden(error):
            raise Refused(
                f"cannot {action} {path}: {error.strerror}; choose a place where you may {action}"
            ) from error
        raise Failed(f"cannot {action} {path}: {error.strerror or error}") from error


def refuse_unwritable(folder: Path) -> None:
    """Find out that a folder cannot be written to before there is anything to write.

    Raises:
        Refused: nothing can be put there.
        Failed: the disk is full.
    """
    probe = folder / ".probe"
    commit_bytes(probe, b"")
    remove(probe)
