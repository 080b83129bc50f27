"""The report of a run: one HTML page that contains its images and figures, without scripts or requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.run_config import to_toml
from pipeline.report.figure_style import draw
from pipeline.report.html import data_url, render_template
from pipeline.report.method_table import short_parameters
from pipeline.report.metric_names import COLUMNS, describe_methods
from pipeline.report.published_numbers import published_rows
from pipeline.report.quality_vs_time import points, quality_against_time
from pipeline.report.table import MISSING, Table, format_mean, format_number
from pipeline.report.terminal_summary import describe_wall_time, same_number_note, teacher_distances
from pipeline.report.times import speedup_cell, time_cell, times_note
from pipeline.report.training_charts import training_charts
from pipeline.run_folder.results import (
    Results,
    Row,
    describe_evaluation,
    read_results,
    reference_row_notes,
    speedup,
    timed_batches,
)
from pipeline.run_folder.run_dir import RunDir
from pipeline.runtime.progress import duration
from shards.core.units import format_bytes
from shards.storage.files import commit_bytes

MAX_CAPTION_CHARACTERS = 200
MEASURES = (
    ("frechet_distance", "Fréchet distance", 3),
    ("frechet_distance_at_real_images", "with as many images as real", 3),
    ("teacher_distance", "distance to teacher", 4),
    ("inception_score", "inception score", 2),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("class_accuracy", "class accuracy", 3),
    ("clip_score", "CLIP score", 2),
    ("token_match", "token match", 3),
)


def write_report(run_dir: RunDir) -> None:
    """Write report.html from the current content of the run's folder.

    Raises:
        Refused: the folder is not a run, or cannot be written to.
    """
    commit_bytes(run_dir.report, render(read_results(run_dir)).encode())


def render(results: Results) -> str:
    """The page as HTML."""
    teacher = results.config.teacher.name
    return render_template(
        "report.html.jinja",
        name=results.run_dir.root.resolve().name,
        description=results.config.description,
        headlines=headlines(results),
        pictures=pictures(results),
        captions=[_shortened(caption) for caption in results.evaluation.get("captions", [])],
        protocol=describe_evaluation(results.evaluation) if results.rows else "",
        evaluations=[_section(evaluation, teacher) for evaluation in results.evaluations],
        charts=list(training_charts(results.metrics)),
        facts=facts(results),
        config=to_toml(results.config),
        environment=results.environment,
    )


def _section(evaluation: Mapping[str, Any], teacher: str) -> dict[str, Any]:
    """An evaluation on the page; the teacher's name selects the published rows."""
    rows, quality = evaluation["rows"], None
    if points(rows):
        figure = quality_against_time(rows, evaluation["protocol"], published_rows(teacher))
        quality = data_url("image/svg+xml", draw(figure).svg)
    return {
        "protocol": describe_evaluation(evaluation),
        "tables": evaluation_tables(rows),
        "methods": describe_methods(rows),
        "scores": [(title, COLUMNS[key]) for key, title, _ in MEASURES if any(row.get(key) is not None for row in rows)],
        "times": times_note(rows, evaluation.get("device", "cpu")),
        "quality": quality,
        "has_spread": evaluation.get("repeats", 1) > 1,
        "is_unscored": evaluation["protocol"] == "samples",
        "reference_row_notes": reference_row_notes(evaluation),
    }


def headlines(results: Results) -> list[tuple[str, str]]:
    """The most important numbers, each with its description."""
    numbers = []
    by_method = {row["method"]: row for row in results.rows}
    student = by_method.get("student-1")
    if student:
        numbers += _speedups(student, results.rows)
        numbers += _scores(results.evaluation, by_method)
    if results.pairs:
        rate = results.pairs.pairs_per_second
        numbers.append((f"{rate:,.{0 if rate >= 10 else 1}f}", "pairs per second, one worker"))
    if results.seconds:
        numbers.append((duration(sum(results.seconds.values())), "for everything"))
    return numbers


def _speedups(student: Row, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The speed-up at each timed batch size, with that of images that are decoded in the description."""
    numbers = []
    for batch in timed_batches(rows):
        if factor := speedup(student, rows, batch):
            decoded = speedup(student, rows, batch, decoding=True)
            title = "one step against the teacher, " + ("an image at a time" if batch == 1 else f"in batches of {batch}")
            numbers.append((f"{factor:.1f}×", f"{title}; {decoded:.1f}× with decoding" if decoded else title))
    return numbers


def evaluation_tables(rows: Sequence[Row]) -> list[Table]:
    """The rows of evaluation.json with their scores, and those with times for each batch size; without empty columns."""
    scores = tuple(
        (
            row["method"],
            *(format_mean(row.get(key), row.get(f"{key}_std") or None, digits) for key, _, digits in MEASURES),
            format_number(row.get("num_steps"), ","),
            MISSING if row.get("num_parameters") is None else short_parameters(row["num_parameters"]),
        )
        for row in rows
    )
    batches = timed_batches(rows)
    timed = [row for row in rows if row.get("seconds_per_image")]
    times = tuple(
        (
            row["method"],
            *(
                cell
                for size in batches
                for cell in (speedup_cell(row, rows, size, unit="×"), time_cell(row, size, ".2f", scale=1e3))
            ),
        )
        for row in timed
    )
    headers = (
        ("method", *(title for _, title, _ in MEASURES), "steps", "parameters"),
        ("method", *(f"{title}, batch {size}" for size in batches for title in ("speed-up", "ms/image"))),
    )
    tables = (_table(*parts) for parts in zip(headers, (scores, times), (rows, timed), strict=True))
    return [table for table in tables if len(table.header) > 1]


def _table(header: tuple[str, ...], cells: tuple[tuple[str, ...], ...], rows: Sequence[Row]) -> Table:
    classes = tuple("student" if row["method"].startswith("student") else "" for row in rows)
    return Table(header, cells, row_classes=classes).without_empty_columns()


def facts(results: Results) -> list[tuple[str, str]]:
    """Pairs, training and cost as name and text."""
    config = results.config
    lines = [("teacher", f"{config.teacher.name}, guidance {config.teacher.guidance_scale:g}")]
    if results.pairs:
        pairs = results.pairs
        lines += [
            ("training pairs", f"{pairs.num_training:,}, and {pairs.num_heldout:,} held out"),
            ("shards", f"{pairs.num_shards:,}, {format_bytes(pairs.num_bytes)}"),
            ("pairs per second", f"{pairs.pairs_per_second:,.1f} a worker"),
            ("worker time", f"{duration(pairs.worker_seconds)} on {', '.join(pairs.devices)}"),
        ]
    return [
        *lines,
        ("training", f"{config.train.num_steps:,} steps of {config.train.batch_size} pairs"),
        ("timesteps", ", ".join(map(str, config.student.timesteps))),
        ("wall time", describe_wall_time(results)),
    ]


def pictures(results: Results) -> list[tuple[str, str]]:
    """Names and URLs: the comparison, then the methods' grids in the order of the table, then all others."""
    # Some file systems do not allow an asterisk in a file's name.
    order = ["comparison", *(row["method"].replace("*", "-star") for row in results.rows)]
    listed = [path for stem in order for path in results.samples if path.stem == stem]
    others = [path for path in results.samples if path.stem not in order]
    return [(path.stem, data_url("image/png", path.read_bytes())) for path in (*listed, *others)]


def _shortened(caption: str) -> str:
    if len(caption) <= MAX_CAPTION_CHARACTERS:
        return caption
    return f"{caption[: MAX_CAPTION_CHARACTERS - 1]}…"


def _scores(evaluation: Mapping[str, Any], by_method: Mapping[str, Row]) -> list[tuple[str, str]]:
    """The student's distances or, without real images, its match with the teacher's tokens."""
    numbers = []
    if distances := teacher_distances(evaluation):
        title = f"Fréchet distance of one step to the teacher's own images; the teacher itself {distances[1]:.3f}"
        numbers.append((f"{distances[0]:.3f}", title))
    distance, teacher = (by_method.get(method, {}).get("frechet_distance") for method in ("student-1", "teacher"))
    if distance is not None:
        beside = [] if teacher is None else [f"teacher {teacher:.3f}"]
        title = "; ".join(["Fréchet distance of one step to real images", *beside, *same_number_note(evaluation)])
        numbers.append((f"{distance:.3f}", title))
    match = by_method["student-1"].get("token_match")
    if not numbers and match is not None:
        numbers.append((f"{match:.3f}", "token match, one step"))
    return numbers
