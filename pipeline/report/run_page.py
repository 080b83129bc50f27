"""A run on one page that needs nothing beside it: images and curves are inside, no script, no request."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.run_config import to_toml
from pipeline.report.html import fill
from pipeline.report.published_numbers import published_rows
from pipeline.report.table import NOTHING, Table, _number, _times, _whole, _with_deviation
from pipeline.report.terminal_summary import took
from pipeline.report.training_charts import training_curves
from pipeline.run_folder.results import (
    Results,
    Row,
    describe_evaluation,
    read_results,
    seconds_per_image,
    speedup,
)
from pipeline.run_folder.run_dir import RunDir
from pipeline.runtime.progress import duration
from shards.storage.files import commit_bytes

SHOWN_CHARACTERS = 200
"""Of a caption."""
MEASURES = (
    ("frechet_distance", "Fréchet distance", 3),
    ("teacher_distance", "distance to teacher", 4),
    ("inception_score", "inception score", 2),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("class_accuracy", "class accuracy", 3),
    ("clip_score", "CLIP score", 2),
    ("token_match", "token match", 3),
)


@dataclass(frozen=True)
class Picture:
    """An image inside the page."""

    name: str
    data_url: str


@dataclass(frozen=True)
class Judgement:
    """An evaluation on the page: what it was made with, its table, and quality against time as a data URL, if any."""

    words: str
    table: Table
    quality: str | None
    has_spread: bool
    is_unscored: bool

    @classmethod
    def of(cls, evaluation: Mapping[str, Any], teacher: str) -> Judgement:
        """That of an evaluation.json; the teacher's name tells what is published about it."""
        return cls(
            describe_evaluation(evaluation),
            evaluation_table(evaluation["rows"]),
            quality_picture(evaluation, teacher),
            evaluation.get("repeats", 1) > 1,
            evaluation["protocol"] == "samples",
        )


def write_report(run_dir: RunDir) -> None:
    """Write report.html from what the run's folder holds so far.

    Raises:
        Refused: the folder is no run, or cannot be written to.
    """
    commit_bytes(run_dir.report, render(read_results(run_dir)).encode())


def render(results: Results) -> str:
    """The page as HTML."""
    return fill(
        "report.html.jinja",
        name=results.run_dir.root.resolve().name,
        description=results.config.description,
        headlines=headlines(results),
        pictures=pictures(results),
        captions=[shortened(caption) for caption in results.evaluation.get("captions", [])],
        judged=describe_evaluation(results.evaluation) if results.rows else "",
        judgements=[
            Judgement.of(evaluation, results.config.teacher.name) for evaluation in results.evaluations
        ],
        curves=training_curves(results.metrics),
        facts=facts(results),
        config=to_toml(results.config),
        environment=results.environment,
    )


def quality_picture(evaluation: Mapping[str, Any], teacher: str) -> str | None:
    """Quality against time as a data URL, None where no method has both numbers."""
    # Only now: matplotlib takes its time to load.
    from pipeline.report.figure_style import draw
    from pipeline.report.quality_vs_time import points, quality_against_time

    if not points(evaluation["rows"]):
        return None
    figure = quality_against_time(evaluation["rows"], evaluation["protocol"], published_rows(teacher))
    return f"data:image/svg+xml;base64,{base64.b64encode(draw(figure).svg).decode()}"


def headlines(results: Results) -> list[tuple[str, str]]:
    """The few numbers that matter most, each with what it is."""
    found = []
    by_method = {row["method"]: row for row in results.rows}
    student = by_method.get("student-1")
    if student:
        factor = speedup(student, results.rows)
        if factor:
            found.append((f"{factor:.1f}×", "one step against the teacher, an image at a time"))
        found += _scores(by_method)
    if results.pairs:
        rate = results.pairs.pairs_per_second
        found.append((f"{rate:,.{0 if rate >= 10 else 1}f}", "pairs per second, one worker"))
    if results.seconds:
        found.append((duration(sum(results.seconds.values())), "for everything"))
    return found


def evaluation_table(rows: Sequence[Row]) -> Table:
    """The rows of evaluation.json with times for each batch size; columns without a number are dropped."""
    batch_sizes = sorted({int(size) for row in rows for size in row.get("seconds_per_image") or {}})
    header = ["method", "steps", "parameters", *(title for _, title, _ in MEASURES)]
    header += [f"ms/image, batch {size}" for size in batch_sizes] + ["speed-up"]
    table = [
        [
            row["method"],
            _whole(row.get("num_steps")),
            _whole(row.get("num_parameters")),
            *(_with_deviation(row, key, digits) for key, _, digits in MEASURES),
            *(_number(_milliseconds(row, size), 2) for size in batch_sizes),
            _times(speedup(row, rows)),
        ]
        for row in rows
    ]
    kept = [column for column in range(len(header)) if any(cells[column] != NOTHING for cells in table)]
    return Table(
        tuple(header[column] for column in kept),
        tuple(tuple(cells[column] for column in kept) for cells in table),
    )


def facts(results: Results) -> list[tuple[str, str]]:
    """Pairs, training and cost as name and text."""
    config, found = results.config, list[tuple[str, str]]()
    found.append(("teacher", f"{config.teacher.name}, guidance {config.teacher.guidance_scale:g}"))
    if results.pairs:
        pairs = results.pairs
        found += [
            ("training pairs", f"{pairs.num_training:,}, and {pairs.num_heldout:,} held out"),
            ("shards", f"{pairs.num_shards:,}, {pairs.num_bytes / 1e6:,.1f} MB"),
            ("pairs per second", f"{pairs.pairs_per_second:,.1f} a worker"),
            ("worker time", f"{duration(pairs.worker_seconds)} on {', '.join(pairs.devices)}"),
        ]
    found += [
        ("training", f"{config.train.num_steps:,} steps of {config.train.batch_size} pairs"),
        ("timesteps", ", ".join(map(str, config.student.timesteps))),
        ("wall time", took(results)),
    ]
    return found


def pictures(results: Results) -> list[Picture]:
    """The comparison, then the methods' grids in the order of the table."""
    order = ["comparison", *(picture_name(row["method"]) for row in results.rows)]
    shown = [path for path in results.samples if path.stem in order]
    others = [path for path in results.samples if path.stem not in order]
    return [picture(path) for path in (*sorted(shown, key=lambda path: order.index(path.stem)), *others)]


def shortened(caption: str) -> str:
    """A caption as a page has room for."""
    return caption if len(caption) <= SHOWN_CHARACTERS else f"{caption[: SHOWN_CHARACTERS - 1]}…"


def picture_name(method: str) -> str:
    """A method's name as its grid's file has it: some systems take no asterisk."""
    return method.replace("*", "-star")


def picture(path: Path) -> Picture:
    """A PNG file as a data URL, named after its file."""
    return Picture(path.stem, f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}")


def _scores(by_method: Mapping[str, Row]) -> list[tuple[str, str]]:
    """How good the student is: against real images, or without these against the teacher's own tokens."""
    asked = (
        ("student-1", "frechet_distance", "Fréchet distance, one step"),
        ("teacher", "frechet_distance", "Fréchet distance, teacher"),
    )
    instead = (("student-1", "token_match", "token match, one step"),)
    for measures in (asked, instead):
        values = [(by_method.get(method, {}).get(key), name) for method, key, name in measures]
        found = [(_number(value, 3), name) for value, name in values if value is not None]
        if found:
            return found
    return []


def _milliseconds(row: Row, batch_size: int) -> float | None:
    seconds = seconds_per_image(row, batch_size)
    return None if seconds is None else seconds * 1e3
