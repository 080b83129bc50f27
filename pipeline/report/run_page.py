"""The report of a run: one HTML page that contains its images and figures, without scripts or requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.run_config import to_toml
from pipeline.report.figure_style import draw
from pipeline.report.html import data_url, render_template
from pipeline.report.published_numbers import published_rows
from pipeline.report.quality_vs_time import points, quality_against_time
from pipeline.report.table import Table, format_mean, format_number
from pipeline.report.terminal_summary import describe_wall_time, milliseconds_per_image
from pipeline.report.training_charts import training_charts
from pipeline.run_folder.results import Results, Row, describe_evaluation, read_results, speedup
from pipeline.run_folder.run_dir import RunDir
from pipeline.runtime.progress import duration
from shards.storage.files import commit_bytes

MAX_CAPTION_CHARACTERS = 200
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
    quality = None
    if points(evaluation["rows"]):
        figure = quality_against_time(evaluation["rows"], evaluation["protocol"], published_rows(teacher))
        quality = data_url("image/svg+xml", draw(figure).svg)
    return {
        "protocol": describe_evaluation(evaluation),
        "table": evaluation_table(evaluation["rows"]),
        "quality": quality,
        "has_spread": evaluation.get("repeats", 1) > 1,
        "is_unscored": evaluation["protocol"] == "samples",
    }


def headlines(results: Results) -> list[tuple[str, str]]:
    """The most important numbers, each with its description."""
    numbers = []
    by_method = {row["method"]: row for row in results.rows}
    student = by_method.get("student-1")
    if student:
        if factor := speedup(student, results.rows):
            numbers.append((f"{factor:.1f}×", "one step against the teacher, an image at a time"))
        numbers += _scores(by_method)
    if results.pairs:
        rate = results.pairs.pairs_per_second
        numbers.append((f"{rate:,.{0 if rate >= 10 else 1}f}", "pairs per second, one worker"))
    if results.seconds:
        numbers.append((duration(sum(results.seconds.values())), "for everything"))
    return numbers


def evaluation_table(rows: Sequence[Row]) -> Table:
    """The rows of evaluation.json with times for each batch size, without empty columns."""
    batch_sizes = sorted({int(size) for row in rows for size in row.get("seconds_per_image") or {}})
    times = (f"ms/image, batch {size}" for size in batch_sizes)
    header = ("method", "steps", "parameters", *(title for _, title, _ in MEASURES), *times, "speed-up")
    cells = tuple(
        (
            row["method"],
            format_number(row.get("num_steps"), ","),
            format_number(row.get("num_parameters"), ","),
            *(format_mean(row.get(key), row.get(f"{key}_std") or None, digits) for key, _, digits in MEASURES),
            *(format_number(milliseconds_per_image(row, size), ".2f") for size in batch_sizes),
            format_number(speedup(row, rows), ".1f", unit="×"),
        )
        for row in rows
    )
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
            ("shards", f"{pairs.num_shards:,}, {pairs.num_bytes / 1e6:,.1f} MB"),
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


def _scores(by_method: Mapping[str, Row]) -> list[tuple[str, str]]:
    """The student's quality: distance to real images or, without real images, match with the teacher's tokens."""
    distances = (
        ("student-1", "frechet_distance", "Fréchet distance, one step"),
        ("teacher", "frechet_distance", "Fréchet distance, teacher"),
    )
    matches = (("student-1", "token_match", "token match, one step"),)
    for measures in (distances, matches):
        values = [(by_method.get(method, {}).get(key), title) for method, key, title in measures]
        if scores := [(format_number(value, ".3f"), title) for value, title in values if value is not None]:
            return scores
    return []
