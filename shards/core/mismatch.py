"""Nested settings with dotted keys, as people name them: `teacher.top_k`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of leaves with dotted keys; an empty mapping counts as a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in nested.items():
        branch = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{prefix}{key}.") if branch else {f"{prefix}{key}": value}
    return leaves
