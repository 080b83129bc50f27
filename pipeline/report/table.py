"""Tables of results."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.run_folder.results import Row

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """What the evaluation's table shows, as text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _whole(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _times(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}×"


def _with_deviation(row: Row, key: str, digits: int) -> str:
    deviation = row.get(f"{key}_std")
    return _number(row.get(key), digits) + (f" ± {deviation:.{digits}f}" if deviation else "")
