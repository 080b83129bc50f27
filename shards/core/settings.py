"""Base of every settings section of the project, and what a resumed run may change in it."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.config import JsonDict

FREE: JsonDict = {"on_resume": "free"}
"""Mark of a field that a resumed run may change."""

UPWARD: JsonDict = {"on_resume": "upward"}
"""Mark of a field that a resumed run may raise. A field with neither mark must stay as it was."""


class Settings(BaseModel):
    """Frozen; an unknown key is an error, and so is a number that is not finite or is a truth value."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python counts true as 1.
        annotation = cls.model_fields[info.field_name or ""].annotation
        wanted = annotation is bool or bool in get_args(annotation)
        members = value if isinstance(value, list | tuple) else [value]
        if not wanted and any(isinstance(member, bool) for member in members):
            raise ValueError(
                f"it cannot be {str(value).lower()}: true and false are neither numbers nor text"
            )
        return value
