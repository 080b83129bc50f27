"""Tables of text, rendered for a terminal, as Markdown, or by a page's template; and the format of their cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress

MISSING = "–"
TERMINAL_MISSING = "-"
"""A cell without a number; terminals without Unicode show the second."""


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells.

    Attributes:
        num_labels: number of leading columns that contain names. They are aligned to the left, all others to the right.
        row_classes: CSS class of each row on a page, "" for none; by default no row has one.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_labels: int = 1
    row_classes: tuple[str, ...] = ()

    def text(self) -> list[str]:
        """Lines with aligned columns, header first."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        return [
            "  ".join(
                cell.ljust(width) if column < self.num_labels else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in (self.header, *self.rows)
        ]

    def markdown(self) -> list[str]:
        """Lines of a Markdown table. Pipes are escaped, and every run of white space becomes one space."""
        rule = ["---" if column < self.num_labels else "---:" for column in range(len(self.header))]
        escaped = (
            [" ".join(cell.replace("|", r"\|").split()) for cell in cells] for cells in (self.header, rule, *self.rows)
        )
        return [f"| {' | '.join(cells)} |" for cells in escaped]

    def html_rows(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """CSS class and cells of each row, for templates/table.html.jinja."""
        return zip(self.row_classes or ("",) * len(self.rows), self.rows, strict=True)

    def without_empty_columns(self) -> Table:
        """The table without the columns that have a number in no row."""
        columns = zip(*self.rows, strict=True)
        kept = [any(cell not in ("", MISSING) for cell in column) for column in columns] or [False] * len(self.header)
        header, *rows = (tuple(compress(cells, kept)) for cells in (self.header, *self.rows))
        return replace(self, header=header, rows=tuple(rows))


def format_number(value: float | None, spec: str, *, unit: str = "", missing: str = MISSING) -> str:
    """A number by a format specification such as `.3f`, or the sign for a missing one."""
    return missing if value is None else f"{value:{spec}}{unit}"


def format_mean(mean: float | None, spread: float | None, digits: int, *, missing: str = MISSING) -> str:
    """`mean ± spread`, or the mean alone if there is no spread."""
    suffix = "" if mean is None or spread is None else f" ± {spread:.{digits}f}"
    return format_number(mean, f".{digits}f", missing=missing) + suffix


terminal_number = partial(format_number, missing=TERMINAL_MISSING)
