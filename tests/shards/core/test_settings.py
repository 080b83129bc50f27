"""What every section of settings refuses, whatever it is about."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shards.core.mismatch import flat
from shards.core.settings import Settings


class Section(Settings):
    """One setting of each kind."""

    count: int = 1
    scale: float = 1.0
    places: tuple[int, ...] = ()
    on: bool = False
    maybe: int | None = None


@pytest.mark.parametrize(
    "wrong", [{"count": True}, {"scale": False}, {"places": [0, True]}, {"maybe": True}], ids=str
)
def test_a_truth_value_is_no_number(wrong) -> None:
    with pytest.raises(ValidationError, match="true and false are neither numbers nor text"):
        Section.model_validate(wrong)


@pytest.mark.parametrize("scale", [float("inf"), float("nan")])
def test_numbers_are_finite(scale) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Section(scale=scale)


def test_what_is_meant_passes() -> None:
    section = Section.model_validate({"count": 2, "scale": 3, "places": [0, 1], "on": True, "maybe": None})
    assert section.model_dump() == {"count": 2, "scale": 3.0, "places": (0, 1), "on": True, "maybe": None}


def test_dotted_keys() -> None:
    nested = {"teacher": {"top_k": 5, "more": {"a": 1}, "nothing": {}}, "seed": 7}
    assert flat(nested) == {"teacher.top_k": 5, "teacher.more.a": 1, "teacher.nothing": {}, "seed": 7}
