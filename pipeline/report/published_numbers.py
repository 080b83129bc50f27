"""Published numbers of the papers' models. Tables show them next to measured numbers and mark them as published."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Published:
    """One row of a paper's tables; None where the paper has no number.

    Teacher and method have this project's names. `is_later` marks rows of the later method, Distilled Decoding 2.
    """

    teacher: str
    method: str
    name: str
    num_steps: int
    frechet_distance: float
    num_parameters: int | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    seconds_per_image: float | None = None
    speedup: float | None = None
    is_later: bool = False
    note: str | None = None


def published_rows(teacher: str) -> tuple[Published, ...]:
    """The rows of a teacher and its students, in the papers' order; empty for a teacher without published rows."""
    return tuple(Published(**row) for row in _content()["row"] if row["teacher"] == teacher)


def published_source() -> str:
    """The papers that the rows come from."""
    return str(_content()["source"])


def _content() -> dict[str, Any]:
    return tomllib.loads((files("pipeline.report") / "published_figures.toml").read_text("utf-8"))
