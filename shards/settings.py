"""Base of every settings section of the project, and what a resumed run may change in it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

FREE: JsonDict = {"on_resume": "free"}
"""Mark of a field that a resumed run may change."""

UPWARD: JsonDict = {"on_resume": "upward"}
"""Mark of a field that a resumed run may raise. A field with neither mark must stay as it was."""


class Settings(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
