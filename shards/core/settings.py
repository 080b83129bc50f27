"""Base class of all settings sections, and the marks of fields that a resumed run may change."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.config import JsonDict

FREE: JsonDict = {"on_resume": "free"}
"""Mark of a field that a resumed run may change."""

UPWARD: JsonDict = {"on_resume": "upward"}
"""Mark of a field that a resumed run may increase. A field without a mark must not change."""


class Settings(BaseModel):
    """Frozen. Rejects unknown keys, numbers that are not finite, and true or false in place of a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic converts true to 1.
        annotation = cls.model_fields[info.field_name or ""].annotation
        is_bool_field = annotation is bool or bool in get_args(annotation)
        members = value if isinstance(value, list | tuple) else [value]
        if not is_bool_field and any(isinstance(member, bool) for member in members):
            raise ValueError(f"it cannot be {str(value).lower()}: true and false are neither numbers nor text")
        return value
