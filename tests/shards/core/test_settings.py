"""Values that every settings section refuses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shards.core.settings import Settings

pytestmark = pytest.mark.quick


class Section(Settings):
    """One setting of each kind."""

    count: int = 1
    scale: float = 1.0
    places: tuple[int, ...] = ()
    on: bool = False
    maybe: int | None = None


@pytest.mark.parametrize("wrong", [{"count": True}, {"scale": False}, {"places": [0, True]}, {"maybe": True}], ids=str)
def test_a_bool_is_not_a_number(wrong) -> None:
    with pytest.raises(ValidationError, match="true and false are neither numbers nor text"):
        Section.model_validate(wrong)


@pytest.mark.parametrize("scale", [float("inf"), float("nan")])
def test_numbers_are_finite(scale) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Section(scale=scale)


def test_valid_values_pass() -> None:
    section = Section.model_validate({"count": 2, "scale": 3, "places": [0, 1], "on": True, "maybe": None})
    assert section.model_dump() == {"count": 2, "scale": 3.0, "places": (0, 1), "on": True, "maybe": None}
