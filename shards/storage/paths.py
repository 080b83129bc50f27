"""Where a data set lies: in a local folder, or at a URL that fsspec reads.

universal-pathlib is imported only where somebody gives a URL.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from shards.core.errors import Refused

if TYPE_CHECKING:
    from upath import UPath

Location: TypeAlias = "Path | UPath"
"""A local path is a `Path`; everything else is a URL."""

_LOCAL = {"file", "local"}
_WEB = {"http", "https"}
_BUCKETS = {"s3", "s3a", "gs", "gcs"}
_EXTRAS = {"gs": "gs", "gcs": "gs"}
"""Protocols that need another extra than `remote`."""


def location(place: Location | str) -> Location:
    """A place as people write it: text with `scheme://` is a URL, any other a local path.

    Raises:
        Refused: a URL of a kind that nothing here can read, or whose library is not installed.
    """
    if not isinstance(place, str):
        return place
    protocol, separator, rest = place.partition("://")
    if not separator:
        return Path(place)
    if protocol in _LOCAL:
        return Path(rest)
    if protocol in _WEB | _BUCKETS and not rest.partition("/")[0]:
        raise Refused(
            f"{place} names no {'host' if protocol in _WEB else 'bucket'}: write it after {protocol}://"
        )
    if "::" in place:
        raise Refused(f"{place} chains several URLs: give the address of the folder itself")
    return _url(place, protocol)


def expanded(key: str, name: str) -> Path:
    """A local path as people write it, with `~` for a home.

    Raises:
        Refused: there is no such home; `key` is the setting that names the path.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise Refused(f"{key}: {name} names a home that is not here") from error


def is_web(place: Location) -> bool:
    """Whether it is on a web server: read by name, never listed, never written."""
    return not isinstance(place, Path) and place.protocol in _WEB


def refuse_web(place: Location, action: str) -> None:
    """Confirms that a place can be written to, as far as its address tells.

    Raises:
        Refused: it is on a web server.
    """
    if is_web(place):
        raise Refused(f"cannot {action} {place}: over {place.as_uri().partition(':')[0]} pairs are only read")


def _url(place: str, protocol: str) -> UPath:
    extra = _EXTRAS.get(protocol, "remote")
    try:
        from fsspec import get_filesystem_class
        from upath import UPath

        get_filesystem_class(protocol)
    except ImportError as error:
        raise Refused(f"{place} cannot be used yet ({error}); `pip install '.[{extra}]'`") from error
    except ValueError as error:
        raise Refused(f"{place}: {protocol}:// is no kind of address that fsspec knows") from error
    # What another machine has written since is what counts: a remembered listing would hide it.
    return UPath(place, use_listings_cache=False)
