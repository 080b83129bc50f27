"""Objects behind a URL that appear whole or not at all: what `shards.storage.files` does, for fsspec's file systems.

An object store knows names, not folders, and puts no disk's guarantees on them: what makes a name whole here is
that its content is looked at under a temporary name first, and then copied by the store itself.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from shards.core.errors import Failed, Refused
from shards.storage.paths import is_web, refuse_web

if TYPE_CHECKING:
    from upath import UPath

_READ_AT_ONCE = 256
_NO_CREDENTIALS = {
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "RefreshError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}
_NO_HOST = {
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
}
_NOT_ALLOWED = {401, 403}


def commit_object(path: UPath, data: bytes, temporary_suffix: str, exclusive: bool = False) -> bool:
    """Puts an object under its name, once the store has been seen to hold the whole content.

    The content goes up under a temporary name and is read back and compared, since no checksum is common to
    all stores. Then the store copies it: nothing is ever sent to the final name, so no broken upload can
    stand under it.

    With `exclusive`, S3 lets one of several writers win (a conditional write). Other stores have no such copy
    in fsspec: there the name is looked at just before, and of two writers in the same instant the later wins.

    Args:
        path: the final name.
        data: the whole content.
        temporary_suffix: how temporary names end.
        exclusive: leave alone what already stands under the name, instead of replacing it.

    Returns:
        Whether the object was put there; only False when `exclusive` and the name was taken.

    Raises:
        Refused: the place cannot be written to.
        Failed: the store broke, or what arrived is not what was sent.
    """
    refuse_web(path, "write")
    system = _system(path)
    aside = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(6)}{temporary_suffix}"
    with _explained("write", path):
        if exclusive and _is_file(path):
            return False
        try:
            system.pipe_file(aside.path, data)
            if system.cat_file(aside.path) != data:
                raise Failed(
                    f"cannot write {path}: what arrived there is not what was sent; run the same command again"
                )
            if exclusive:
                done = _copy_if_free(system, aside.path, path)
            else:
                system.cp_file(aside.path, path.path)
                done = True
        except BaseException:
            # The first mishap is what a person must hear; what stays behind is cleared away when it is old.
            with suppress(Exception):
                system.rm_file(aside.path)
            raise
        system.rm_file(aside.path)
    return done


def read_object(path: UPath) -> bytes:
    """The whole content of an object.

    Raises:
        Failed: it is missing, or cannot be read.
        Refused: reading it is not allowed.
    """
    with _explained("read", path):
        data: bytes = _system(path).cat_file(path.path)
    return data


def read_objects(paths: Sequence[UPath]) -> Iterator[bytes | None]:
    """The content of each object, None where there is none; many are asked for at a time. Raises as `read_object`."""
    for first in range(0, len(paths), _READ_AT_ONCE):
        some = paths[first : first + _READ_AT_ONCE]
        with _explained("read", some[0]):
            found = _system(some[0]).cat([path.path for path in some], on_error="return")
        for path in some:
            content = found[path.path]
            with _explained("read", path):
                if isinstance(content, FileNotFoundError) and not _without_bucket(content):
                    content = None
                if isinstance(content, Exception):
                    raise content
            yield content


def holds_object(path: UPath, sha256: str) -> bool:
    """Whether there is an object of this name and its content has this sha256 (hex)."""
    return any(
        data is not None and hashlib.sha256(data).hexdigest() == sha256 for data in read_objects([path])
    )


def is_object(path: UPath) -> bool:
    """Whether there is an object of this name."""
    if is_web(path):
        # What its file system says of a name is the same for a name that is not there and a host that is not.
        (content,) = read_objects([path])
        return content is not None
    with _explained("read", path):
        return _is_file(path)


def is_prefix(folder: UPath) -> bool:
    """Whether there is anything below this name."""
    with _explained("list", folder):
        try:
            return bool(_system(folder).info(folder.path)["type"] == "directory")
        except FileNotFoundError as error:
            if _without_bucket(error):
                raise
            return False


def list_objects(folder: UPath) -> list[str]:
    """Names of the objects directly below this name; none where there is nothing, or nothing can be listed."""
    if is_web(folder):
        return []
    with _explained("list", folder):
        try:
            entries = _system(folder).ls(folder.path, detail=True)
        except FileNotFoundError as error:
            if _without_bucket(error):
                raise
            return []
    return [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]


def remove_object(path: UPath) -> bool:
    """Takes an object away; whether there was one."""
    refuse_web(path, "remove")
    with _explained("remove", path):
        if not _is_file(path):
            return False
        # Somebody else may be faster.
        with suppress(FileNotFoundError):
            _system(path).rm_file(path.path)
    return True


def take_object(path: UPath) -> bytes | None:
    """Removes an object and returns what it held, None where there was none.

    There is no renaming in an object store: of several who ask at once each may get it, and what somebody
    else puts there between the two steps is lost.
    """
    (content,) = read_objects([path])
    if content is not None:
        remove_object(path)
    return content


def remove_stale_objects(folder: UPath, temporary_suffix: str, older_than_seconds: float) -> int:
    """Removes temporary objects of killed writers; how many those were. The store's clock says how old they are."""
    limit = time.time() - older_than_seconds
    removed = 0
    for name in list_objects(folder):
        if not (name.startswith(".") and name.endswith(temporary_suffix)):
            continue
        path = folder / name
        # Another cleaner, or the writer itself, may be faster.
        with _explained("remove", path), suppress(FileNotFoundError):
            if _system(path).modified(path.path).timestamp() < limit:
                _system(path).rm_file(path.path)
                removed += 1
    return removed


def _system(path: UPath) -> Any:
    """The file system of this process: one that was opened before a fork must not be used after it."""
    from fsspec import filesystem

    return filesystem(path.protocol, **path.storage_options)


def _is_file(path: UPath) -> bool:
    try:
        return bool(_system(path).info(path.path)["type"] == "file")
    except FileNotFoundError as error:
        if _without_bucket(error):
            raise
        return False


def _copy_if_free(system: Any, aside: str, path: UPath) -> bool:
    """Copies an object to a name that nobody has taken; whether it was free."""
    while not _is_file(path):
        if not hasattr(system, "call_s3"):
            system.cp_file(aside, path.path)
            return True
        try:
            _copy_on_s3(system, aside, path.path)
        except OSError as error:
            if isinstance(error, FileExistsError) or _s3_code(error) == "PreconditionFailed":
                return False
            # Two conditional writes met: S3 asks whoever hears this to look again.
            if _s3_code(error) != "ConditionalRequestConflict":
                raise
        else:
            return True
    return False


def _copy_on_s3(system: Any, aside: str, name: str) -> None:
    """A copy inside S3 that fails where the name is taken.

    Of S3's ways to copy, this one (an upload of one part that is copied, and a conditional end) is the
    conditional one that compatible stores know, too.
    """
    bucket, key, _ = system.split_path(name)
    target = {"Bucket": bucket, "Key": key}
    target["UploadId"] = system.call_s3("create_multipart_upload", **target)["UploadId"]
    try:
        part = system.call_s3("upload_part_copy", **target, PartNumber=1, CopySource=aside)["CopyPartResult"]
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        system.call_s3("complete_multipart_upload", **target, MultipartUpload=parts, IfNoneMatch="*")
    except BaseException:
        # A part of an upload that was neither ended nor taken back is paid for.
        with suppress(Exception):
            system.call_s3("abort_multipart_upload", **target)
        raise


def _s3_code(error: BaseException) -> str | None:
    """S3's own name of what went wrong, where s3fs has turned it into a system's error."""
    response = getattr(error.__cause__, "response", None)
    return response["Error"].get("Code") if isinstance(response, dict) and "Error" in response else None


def _without_bucket(error: BaseException) -> bool:
    return _s3_code(error) == "NoSuchBucket"


@contextmanager
def _explained(action: str, path: UPath) -> Iterator[None]:
    """Turns what stores and their libraries raise, each its own, into the two kinds that people see."""
    try:
        yield
    # What is told already, and what no store raises but a mistake here.
    except (Refused, Failed, AttributeError, NameError, TypeError):
        raise
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        reason = " ".join(str(error).split()) or type(error).__name__
        if _without_bucket(error):
            raise Refused(
                f"cannot {action} {path}: there is no such bucket; make it, or name another"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise Failed(f"cannot {action} {path}: it is missing") from error
        if kinds & _NO_CREDENTIALS:
            raise Refused(
                f"cannot {action} {path}: no credentials for it ({reason}); give them as {path.protocol} expects"
            ) from error
        if isinstance(error, PermissionError) or getattr(error, "status", None) in _NOT_ALLOWED:
            raise Refused(
                f"cannot {action} {path}: access is refused ({reason}); give credentials that may {action} there"
            ) from error
        if kinds & _NO_HOST:
            raise Failed(
                f"cannot {action} {path}: its host cannot be reached ({reason}); check the address and the network, "
                "and run the same command again"
            ) from error
        raise Failed(f"cannot {action} {path}: {type(error).__name__}: {reason}") from error
