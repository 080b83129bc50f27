"""Atomic operations on objects behind a URL: the counterpart of `shards.storage.files` for fsspec file systems.

An object store has names but no folders, and does not guarantee atomic uploads. Therefore an upload goes to a
temporary name, is read back and compared, and then the store itself copies it to the final name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from shards.core.errors import Failed, Refused
from shards.storage.paths import TEMPORARY_SUFFIX, is_web, refuse_web, temporary_name

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
_NO_HOST = {"ClientConnectorError", "ClientConnectorDNSError", "ConnectTimeoutError", "EndpointConnectionError"}
_NOT_ALLOWED = {401, 403}


def commit_object(path: UPath, data: bytes, exclusive: bool = False) -> bool:
    """Write a complete object. Returns False only if `exclusive` is set and the object exists.

    The content is uploaded to a temporary name, read back and compared, since stores share no checksum. Then the
    store copies it. A broken upload never appears under the final name, because no data are sent to that name.

    With `exclusive` on S3, exactly one of several writers wins (a conditional write). fsspec offers no conditional
    copy for other stores: the name is checked just before the copy, and of two simultaneous writers the later wins.

    Raises:
        Refused: the store is read-only, does not exist or does not allow it.
        Failed: the upload failed, or what was uploaded differs.
    """
    refuse_web(path, "write")
    system = _system(path)
    temporary = temporary_name(path)
    written = True
    with _translated_errors("write", path):
        if exclusive and _is_file(path):
            return False
        try:
            system.pipe_file(temporary.path, data)
            if system.cat_file(temporary.path) != data:
                raise Failed(
                    f"cannot write {path}: the uploaded content differs from the data; run the same command again"
                )
            if exclusive:
                written = _copy_if_free(system, temporary.path, path)
            else:
                system.cp_file(temporary.path, path.path)
        except BaseException:
            # Report the first error; `remove_stale_objects` deletes the temporary object later if this fails.
            with suppress(Exception):
                system.rm_file(temporary.path)
            raise
        system.rm_file(temporary.path)
    return written


def read_object(path: UPath) -> bytes:
    """Read a whole object."""
    with _translated_errors("read", path):
        data: bytes = _system(path).cat_file(path.path)
    return data


def read_objects(paths: Sequence[UPath]) -> Iterator[bytes | None]:
    """Content of each object, None for a missing one, requested in batches."""
    for first in range(0, len(paths), _READ_AT_ONCE):
        batch = paths[first : first + _READ_AT_ONCE]
        with _translated_errors("read", batch[0]):
            contents = _system(batch[0]).cat([path.path for path in batch], on_error="return")
        for path in batch:
            content = contents[path.path]
            with _translated_errors("read", path):
                if isinstance(content, FileNotFoundError) and not _without_bucket(content):
                    content = None
                if isinstance(content, Exception):
                    raise content
            yield content


def is_object(path: UPath) -> bool:
    """True if the object exists."""
    if is_web(path):
        # fsspec's HTTP file system gives the same answer for a missing file and an unreachable host.
        (content,) = read_objects([path])
        return content is not None
    with _translated_errors("read", path):
        return _is_file(path)


def is_prefix(folder: UPath) -> bool:
    """True if the name of any object starts with this folder."""
    with _translated_errors("list", folder):
        return _kind(folder) == "directory"


def list_objects(folder: UPath) -> list[str]:
    """Names of the objects directly in this folder; empty if there are none or the store cannot list."""
    if is_web(folder):
        return []
    with _translated_errors("list", folder):
        try:
            entries = _system(folder).ls(folder.path, detail=True)
        except FileNotFoundError as error:
            if _without_bucket(error):
                raise
            return []
    return [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]


def remove_object(path: UPath) -> bool:
    """Delete an object. Returns False if it does not exist."""
    refuse_web(path, "remove")
    with _translated_errors("remove", path):
        if not _is_file(path):
            return False
        # Another process may delete it first.
        with suppress(FileNotFoundError):
            _system(path).rm_file(path.path)
    return True


def remove_stale_objects(folder: UPath, older_than_seconds: float) -> int:
    """Delete temporary objects of killed writers, and return how many. Their age is measured by the store's clock."""
    limit = time.time() - older_than_seconds
    removed = 0
    for name in list_objects(folder):
        if not (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)):
            continue
        path = folder / name
        # Another process, or the writer itself, may delete the object first.
        with _translated_errors("remove", path), suppress(FileNotFoundError):
            if _system(path).modified(path.path).timestamp() < limit:
                _system(path).rm_file(path.path)
                removed += 1
    return removed


def _system(path: UPath) -> Any:
    """The file system of this process: one opened before a fork must not be used after it."""
    from fsspec import filesystem

    return filesystem(path.protocol, **path.storage_options)


def _is_file(path: UPath) -> bool:
    return _kind(path) == "file"


def _kind(path: UPath) -> str | None:
    """ "file" or "directory"; None if the name does not exist. Raises FileNotFoundError if the bucket does not exist."""
    try:
        kind: str = _system(path).info(path.path)["type"]
    except FileNotFoundError as error:
        if _without_bucket(error):
            raise
        return None
    return kind


def _copy_if_free(system: Any, source: str, path: UPath) -> bool:
    """Copy an object unless the target exists. Returns False if it exists."""
    while not _is_file(path):
        if not hasattr(system, "call_s3"):
            system.cp_file(source, path.path)
            return True
        try:
            _copy_on_s3(system, source, path.path)
        except OSError as error:
            if isinstance(error, FileExistsError) or _s3_code(error) == "PreconditionFailed":
                return False
            # Two conditional writes collided: S3 asks the client to retry.
            if _s3_code(error) != "ConditionalRequestConflict":
                raise
        else:
            return True
    return False


def _copy_on_s3(system: Any, source: str, name: str) -> None:
    """Copy inside S3; fails if the target exists.

    A multipart upload with one copied part and a conditional completion: the conditional copy that S3-compatible
    stores support, too.
    """
    bucket, key, _ = system.split_path(name)
    target = {"Bucket": bucket, "Key": key}
    target["UploadId"] = system.call_s3("create_multipart_upload", **target)["UploadId"]
    try:
        part = system.call_s3("upload_part_copy", **target, PartNumber=1, CopySource=source)["CopyPartResult"]
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        system.call_s3("complete_multipart_upload", **target, MultipartUpload=parts, IfNoneMatch="*")
    except BaseException:
        # Parts of an upload that is neither completed nor aborted are billed.
        with suppress(Exception):
            system.call_s3("abort_multipart_upload", **target)
        raise


def _s3_code(error: BaseException) -> str | None:
    """S3's error code, which s3fs keeps in the cause of the OSError."""
    response = getattr(error.__cause__, "response", None)
    return response["Error"].get("Code") if isinstance(response, dict) and "Error" in response else None


def _without_bucket(error: BaseException) -> bool:
    return _s3_code(error) == "NoSuchBucket"


@contextmanager
def _translated_errors(action: str, path: UPath) -> Iterator[None]:
    """Convert the exceptions of the stores' libraries to `Refused` or `Failed` with a message for the user."""
    try:
        yield
    # Already converted, or a programming error.
    except (Refused, Failed, AttributeError, NameError, TypeError):
        raise
    except Exception as error:
        kind, problem = _classify(error, action, path.protocol)
        raise kind(f"cannot {action} {path}: {problem}") from error


def _classify(error: Exception, action: str, protocol: str) -> tuple[type[Exception], str]:
    classes = {base.__name__ for base in type(error).__mro__}
    reason = " ".join(str(error).split()) or type(error).__name__
    if _without_bucket(error):
        return Refused, "there is no such bucket; create it, or choose another one"
    if isinstance(error, FileNotFoundError):
        return Failed, "it is missing"
    if classes & _NO_CREDENTIALS:
        return Refused, f"no credentials ({reason}); provide them as {protocol} expects"
    if isinstance(error, PermissionError) or getattr(error, "status", None) in _NOT_ALLOWED:
        return Refused, f"access is refused ({reason}); use credentials that may {action} there"
    if classes & _NO_HOST:
        remedy = "check the address and the network, then run the same command again"
        return Failed, f"its host cannot be reached ({reason}); {remedy}"
    return Failed, f"{type(error).__name__}: {reason}"
