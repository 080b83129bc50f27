"""Comparison of nested settings and its message."""

from __future__ import annotations

import pytest

from shards.core.mismatch import Mismatch, flat, format_mismatch, mismatches

pytestmark = pytest.mark.quick


def test_dotted_keys() -> None:
    nested = {"teacher": {"top_k": 5, "more": {"a": 1}, "nothing": {}}, "seed": 7}
    assert flat(nested) == {"teacher.top_k": 5, "teacher.more.a": 1, "teacher.nothing": {}, "seed": 7}


def test_differing_keys_are_sorted_and_formatted() -> None:
    found = {"teacher": {"top_k": 5, "top_p": None, "name": "var"}, "steps": [0, 8], "old": 1}
    requested = {"teacher": {"top_k": 9, "top_p": 0.5, "name": "var"}, "steps": (0,), "new": 2}
    assert [format_mismatch(mismatch) for mismatch in mismatches(found, requested)] == [
        "new: found nothing, requested 2",
        "old: found 1, requested nothing",
        "steps: found 0,8, requested 0",
        "teacher.top_k: found 5, requested 9",
        "teacher.top_p: found no value, requested 0.5",
    ]


def test_none_may_equal_a_missing_key() -> None:
    assert mismatches({}, {"size": None, "seed": 1}, none_is_missing=True) == [Mismatch("seed", None, 1)]
    assert [mismatch.key for mismatch in mismatches({}, {"size": None})] == ["size"]
