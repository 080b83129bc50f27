"""What the papers print for the models of the real presets, to stand beside what is measured; never mixed with it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Published:
    """One row of a paper's tables; None where it says nothing.

    Attributes:
        teacher: the teacher's name in this project.
        method: the method's name here, as in evaluation.json.
        name: what the paper calls the model.
        is_later: of the later method, Distilled Decoding 2.
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
    """The rows about a teacher and its students, in the papers' order; none for any other teacher."""
    return tuple(Published(**row) for row in _content()["row"] if row["teacher"] == teacher)


def published_source() -> str:
    """Where the rows stand."""
    return str(_content()["source"])


def _content() -> dict[str, Any]:
    return tomllib.loads((files("pipeline.report") / "published_figures.toml").read_text("utf-8"))
