"""Locations of data sets: a local folder, or a URL that fsspec reads.

universal-pathlib is imported only if a URL is used.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from shards.core.errors import Refused

if TYPE_CHECKING:
    from upath import UPath

Location: TypeAlias = "Path | UPath"
"""A `Path` for local files, otherwise a URL."""

AnyPath = TypeVar("AnyPath", Path, "UPath")
TEMPORARY_SUFFIX = ".tmp"

_LOCAL = {"file", "local"}
_WEB = {"http", "https"}
_BUCKETS = {"s3", "s3a", "gs", "gcs"}
_EXTRAS = {"gs": "gs", "gcs": "gs"}
"""Protocols that need a different extra than `remote`."""


def location(place: Location | str) -> Location:
    """Parse a location: text with `scheme://` is a URL, any other text a local path.

    Raises `Refused` if the kind of URL is not supported, or its library is not installed.
    """
    if not isinstance(place, str):
        return place
    protocol, separator, rest = place.partition("://")
    if not separator:
        return Path(place)
    if protocol in _LOCAL:
        return Path(rest)
    if protocol in _WEB | _BUCKETS and not rest.partition("/")[0]:
        raise Refused(f"{place} has no {'host' if protocol in _WEB else 'bucket'}: write it after {protocol}://")
    if "::" in place:
        raise Refused(f"{place} chains several URLs: give the address of the folder itself")
    try:
        from fsspec import get_filesystem_class
        from upath import UPath

        get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol, "remote")
        raise Refused(f"{place} needs a library ({error}); run `pip install '.[{extra}]'`") from error
    except ValueError as error:
        raise Refused(f"{place}: fsspec does not support {protocol}://") from error
    # A cached listing would hide what other machines have written since.
    return UPath(place, use_listings_cache=False)


def expand_home(key: str, name: str) -> Path:
    """A local path with its `~` expanded. `key`, the setting with the path, is for the message of `Refused`."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise Refused(f"{key}: {name} refers to a home folder that does not exist") from error


def temporary_name(path: AnyPath) -> AnyPath:
    """Unique name next to `path` that listings ignore."""
    return path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"


def is_web(place: Location) -> bool:
    """True for a web server: files can be read by name, but neither listed nor written."""
    return not isinstance(place, Path) and place.protocol in _WEB


def refuse_web(place: Location, action: str) -> None:
    """Raise `Refused` for a location on a web server, which is read-only."""
    if is_web(place):
        protocol = place.as_uri().partition(":")[0]
        raise Refused(f"cannot {action} {place}: pairs can only be read over {protocol}")
