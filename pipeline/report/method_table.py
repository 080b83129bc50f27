"""The table of an evaluation in the form of the paper's Tables 1 and 2, published rows beside the measured ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.published_numbers import Published, published_rows, published_source
from pipeline.run_folder.results import Row, describe_evaluation, seconds_per_image, speedup, steady_batch

HEADER = (
    *("method", "steps", "parameters", "Frechet", "to teacher", "inception", "precision", "recall"),
    *("s/image", "speed-up"),
)
SCORES = (
    ("frechet_distance", 3),
    ("teacher_distance", 4),
    ("inception_score", 2),
    ("precision", 3),
    ("recall", 3),
)
NOTHING = "-"


@dataclass(frozen=True)
class MethodTable:
    """An evaluation as a table of text.

    Attributes:
        heading: protocol, number of images and noise seeds, without which no number means anything.
        rows: cells by `HEADER`.
        notes: sentences that belong under it.
    """

    heading: str
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def text(self) -> list[str]:
        """Aligned lines, heading first."""
        widths = [max(map(len, column)) for column in zip(HEADER, *self.rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in (HEADER, *self.rows)
        ]
        return [self.heading, *lines, *self.notes]

    def markdown(self) -> list[str]:
        """The same as Markdown."""
        rule = ["---", *["---:"] * (len(HEADER) - 1)]
        lines = [f"| {' | '.join(cell.strip() for cell in cells)} |" for cells in (HEADER, rule, *self.rows)]
        return [self.heading, "", *lines, "", *self.notes]


def method_table(evaluation: Mapping[str, Any], teacher: str) -> MethodTable:
    """The table of an evaluation.

    Args:
        evaluation: as evaluation.json holds it.
        teacher: its name; those of the papers have published rows, marked as such.
    """
    rows: Sequence[Row] = evaluation["rows"]
    batch = steady_batch(rows)
    published = published_rows(teacher)
    known = {row["method"] for row in rows}
    cells = [line for row in rows for line in _with_published(row, rows, batch, published)]
    cells += [_published_cells(one, one.method) for one in published if one.method not in known]
    return MethodTable(
        f"Protocol {describe_evaluation(evaluation)}",
        tuple(cells),
        tuple(_notes(evaluation, batch, published)),
    )


def _with_published(
    row: Row, rows: Sequence[Row], batch: int | None, published: Sequence[Published]
) -> Iterator[tuple[str, ...]]:
    yield _cells(row, rows, batch)
    for one in published:
        if one.method == row["method"]:
            yield _published_cells(one, "")


def _cells(row: Row, rows: Sequence[Row], batch: int | None) -> tuple[str, ...]:
    seconds = None if batch is None else seconds_per_image(row, batch)
    factor = None if batch is None else speedup(row, rows, batch)
    return (
        row["method"],
        _whole(row.get("num_steps")),
        short_parameters(row.get("num_parameters")),
        *(_with_spread(row.get(key), row.get(f"{key}_std"), digits) for key, digits in SCORES),
        _seconds(seconds),
        _times(factor),
    )


def _published_cells(one: Published, method: str) -> tuple[str, ...]:
    return (
        f"{method}  published: {one.name}" if method else f"  published: {one.name}",
        _whole(one.num_steps),
        short_parameters(one.num_parameters),
        *(NOTHING if (value := getattr(one, key, None)) is None else f"{value:g}" for key, _ in SCORES),
        _seconds(one.seconds_per_image),
        _times(one.speedup),
    )


def _notes(evaluation: Mapping[str, Any], batch: int | None, published: Sequence[Published]) -> Iterator[str]:
    rows: Sequence[Row] = evaluation["rows"]
    if batch is not None:
        times = (row.get("decode_seconds_per_image") for row in rows)
        decoding: Mapping[str, float] = next(filter(None, times), {})
        own = decoding.get(str(batch))
        after = "" if own is None else f", which takes {_seconds(own)} s more"
        yield (
            f"s/image: steady state in batches of {batch} on {evaluation.get('device', 'cpu')}, without decoding{after}; "
            "speed-up over the teacher."
        )
    if "teacher_images" in evaluation:
        yield f"to teacher: Frechet distance to {evaluation['teacher_images']:,} images of the pairs."
    if evaluation.get("repeats", 1) > 1:
        yield "Mean and sample standard deviation over the noise seeds."
    if fits := [
        f"{row['method']} {row['clip_score']:.2f}" for row in rows if row.get("clip_score") is not None
    ]:
        yield f"CLIP score by {evaluation['clip']}: {', '.join(fits)}."
    if published:
        yield f"Published rows are figures of the papers ({published_source()}), not of this run."
        yield from dict.fromkeys(f"{one.name} {one.method}: {one.note}." for one in published if one.note)


def short_parameters(count: int | None) -> str:
    """A number of parameters as papers write it: `1.09B`, `327M`, `50.7k`."""
    if count is None:
        return NOTHING
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)


def _with_spread(value: float | None, spread: float | None, digits: int) -> str:
    if value is None:
        return NOTHING
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _whole(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _times(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}x"
