"""Comparison of nested settings, key by key. Keys are dotted, as users write them: `teacher.top_k`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_MISSING = object()


class Mismatch(NamedTuple):
    """One dotted key whose stored value differs from the requested one."""

    key: str
    found: Any
    requested: Any


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to its leaves with dotted keys. An empty mapping counts as a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in nested.items():
        branch = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{prefix}{key}.") if branch else {f"{prefix}{key}": value}
    return leaves


def mismatches(
    found: Mapping[str, Any], requested: Mapping[str, Any], *, none_is_missing: bool = False
) -> list[Mismatch]:
    """Compare two nested mappings; return the keys that differ, sorted.

    Args:
        found: the stored values.
        requested: the values to compare them with.
        none_is_missing: treat a missing key and the value None as equal.
    """
    before, after = flat(found), flat(requested)
    default = None if none_is_missing else _MISSING
    pairs = (
        Mismatch(key, before.get(key, default), after.get(key, default)) for key in sorted(before.keys() | after.keys())
    )
    return [pair for pair in pairs if pair.found != pair.requested]


def format_mismatch(mismatch: Mismatch) -> str:
    """The text `KEY: found X, requested Y`, with lists written as on the command line."""
    key, *values = mismatch
    found, requested = map(_shown, values)
    if found == requested:  # values of different types, as 1 and "1"
        found, requested = map(repr, values)
    return f"{key}: found {found}, requested {requested}"


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    if value is None:
        return "no value"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) and value else str(value)
