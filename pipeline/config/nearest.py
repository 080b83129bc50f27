"""The most similar of several names, for messages about unknown ones. Imports nothing else, so that `--help` is quick."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, candidates: Sequence[str]) -> str | None:
    """The candidate most similar to a name, compared whole first, then by the last part of dotted keys."""
    if matches := difflib.get_close_matches(name, candidates, n=1, cutoff=0.6):
        return matches[0]
    by_last_part = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.rpartition(".")[2], list(by_last_part), n=1, cutoff=0.6)
    return by_last_part[matches[0]] if matches else None
