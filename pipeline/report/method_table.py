"""The table of an evaluation in the form of the paper's Tables 1 and 2, with published rows next to measured ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.published_numbers import Published, published_rows, published_source
from pipeline.report.table import TERMINAL_MISSING, Table, format_mean, terminal_number
from pipeline.report.times import speedup_cell, time_cell, times_note
from pipeline.run_folder.results import Row, describe_evaluation, reference_row_notes, timed_batches

HEADER = ("method", "steps", "parameters", "Frechet", "to teacher", "inception", "precision", "recall")
"""The first columns; for each timed batch size, the seconds per image and the speed-up follow."""
SCORES = {"frechet_distance": 3, "teacher_distance": 4, "inception_score": 2, "precision": 3, "recall": 3}
"""Columns of quality, with their digits."""


@dataclass(frozen=True)
class MethodTable:
    """An evaluation as a heading with its protocol, a header, cells, and sentences below the table."""

    heading: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def text(self) -> list[str]:
        """Lines for a terminal."""
        return [self.heading, *Table(self.header, self.rows).text(), *self.notes]

    def markdown(self) -> list[str]:
        """Lines of Markdown."""
        return [self.heading, "", *Table(self.header, self.rows).markdown(), "", *self.notes]


def method_table(evaluation: Mapping[str, Any], teacher: str) -> MethodTable:
    """The table of an evaluation.json; published rows of the teacher are added and marked as such."""
    rows: Sequence[Row] = evaluation["rows"]
    batches = timed_batches(rows)
    published = published_rows(teacher)
    # The papers' times are of other machines and batch sizes than the measured ones.
    published_header = ("published s/image", "published speed-up") if published else ()
    measured = {row["method"] for row in rows}
    cells: list[tuple[str, ...]] = []
    for row in rows:
        cells.append((*_measured_cells(row, rows, batches), *(TERMINAL_MISSING,) * len(published_header)))
        cells += [_published_cells(entry, "", batches) for entry in published if entry.method == row["method"]]
    cells += [_published_cells(entry, entry.method, batches) for entry in published if entry.method not in measured]
    notes = tuple(_notes(evaluation, published))
    timed = (f"{title} at {batch}" for batch in batches for title in ("s/image", "speed-up"))
    header = (*HEADER, *timed, *published_header)
    return MethodTable(f"Protocol {describe_evaluation(evaluation)}", header, tuple(cells), notes)


def _measured_cells(row: Row, rows: Sequence[Row], batches: Sequence[int]) -> tuple[str, ...]:
    return (
        row["method"],
        terminal_number(row.get("num_steps"), ","),
        short_parameters(row.get("num_parameters")),
        *(
            format_mean(row.get(key), row.get(f"{key}_std"), digits, missing=TERMINAL_MISSING)
            for key, digits in SCORES.items()
        ),
        *(
            cell
            for batch in batches
            for cell in (
                time_cell(row, batch, ".3g", missing=TERMINAL_MISSING),
                speedup_cell(row, rows, batch, missing=TERMINAL_MISSING),
            )
        ),
    )


def _published_cells(entry: Published, method: str, batches: Sequence[int]) -> tuple[str, ...]:
    return (
        f"{method}  published: {entry.name}",
        terminal_number(entry.num_steps, ","),
        short_parameters(entry.num_parameters),
        *(terminal_number(getattr(entry, key, None), "g") for key in SCORES),
        *(TERMINAL_MISSING,) * (2 * len(batches)),
        terminal_number(entry.seconds_per_image, ".3g"),
        terminal_number(entry.speedup, ".1f"),
    )


def _notes(evaluation: Mapping[str, Any], published: Sequence[Published]) -> Iterator[str]:
    rows: Sequence[Row] = evaluation["rows"]
    yield from filter(None, [times_note(rows, evaluation.get("device", "cpu"))])
    yield from reference_row_notes(evaluation)
    if "teacher_images" in evaluation:
        yield f"to teacher: Frechet distance to {evaluation['teacher_images']:,} images of the pairs."
    if evaluation.get("repeats", 1) > 1:
        yield "Mean and sample standard deviation over the noise seeds."
    clip_scores = [f"{row['method']} {row['clip_score']:.2f}" for row in rows if row.get("clip_score") is not None]
    if clip_scores:
        yield f"CLIP score by {evaluation['clip']}: {', '.join(clip_scores)}."
    if published:
        yield f"Published rows are figures of the papers ({published_source()}), not of this run."
        yield from dict.fromkeys(f"{entry.name} {entry.method}: {entry.note}." for entry in published if entry.note)


def short_parameters(count: int | None) -> str:
    """A number of parameters in the papers' style: `1.09B`, `327M`, `50.7k`."""
    if count is None:
        return TERMINAL_MISSING
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)
