"""The summary that a run prints on the terminal when it ends."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.table import TERMINAL_MISSING, Table, format_mean
from pipeline.report.times import speedup_cell, time_cell, times_note
from pipeline.run_folder.results import (
    PairStatistics,
    Results,
    Row,
    describe_evaluation,
    reference_row_notes,
    timed_batches,
)
from pipeline.runtime.progress import duration
from shards.core.units import format_bytes
from shards.dataset.replace_shard import Replacement

SCORES = {
    "frechet_distance": "Frechet",
    "teacher_distance": "to teacher",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "accuracy",
}
UNSCORED = {"token_match": "token match"}
"""Shown instead of `SCORES` if the evaluation has no real images."""
CLIP = {"clip_score": "CLIP"}
"""Shown in addition if the evaluation used a CLIP model."""
SUMMARY_METHODS = ("real", "reconstruction", "teacher", "student-1", "student-2", "onestep*")
MAX_SHARD_LINES = 20


def summary_lines(results: Results) -> list[str]:
    """The outcome of a run, in about ten lines."""
    config, run_dir = results.config, results.run_dir
    return [
        f"run       {run_dir.root}",
        *([f"pairs     {pairs_line(results.pairs)}"] if results.pairs else []),
        f"student   {config.train.num_steps:,} steps of {config.train.batch_size} pairs, "
        f"timesteps {','.join(map(str, config.student.timesteps))}, split {config.student.split}",
        *([f"protocol  {describe_evaluation(results.evaluation)}"] if results.rows else []),
        *(result_lines(results.evaluation, SUMMARY_METHODS) if results.rows else []),
        f"wall time {describe_wall_time(results)}",
        f"saved in  {run_dir.student} (student), {run_dir.samples} (images), {run_dir.report} (report)",
    ]


def pairs_line(pairs: PairStatistics) -> str:
    """Totals of a pair data set in one line."""
    return (
        f"{pairs.num_training:,} for training, {pairs.num_heldout:,} held out, {pairs.num_shards:,} shards, "
        f"{format_bytes(pairs.num_bytes)}, {pairs.pairs_per_second:,.1f} pairs/s a worker"
    )


def replacement_lines(replaced: Sequence[Replacement]) -> list[str]:
    """A line for each replaced shard, comparing it with the old one; above `MAX_SHARD_LINES`, totals."""
    equal = [replacement.row.shard for replacement in replaced if replacement.is_equal]
    changed = [replacement for replacement in replaced if not replacement.is_equal]
    if len(equal) > MAX_SHARD_LINES:
        lines = [f"{len(equal):,} shards: equal to what was committed"]
    else:
        lines = [f"{shard}: equal to what was committed" for shard in equal]
    lines += [
        f"{replacement.row.shard}: {_difference(replacement)}; it has a new row"
        for replacement in changed[:MAX_SHARD_LINES]
    ]
    if rest := changed[MAX_SHARD_LINES:]:
        total = Replacement(
            row=rest[0].row,
            is_equal=False,
            num_tokens=sum(replacement.num_tokens for replacement in rest),
            num_compared=sum(replacement.num_compared for replacement in rest),
            num_differing=sum(replacement.num_differing for replacement in rest),
        )
        lines.append(f"{len(rest):,} shards more: {_difference(total)}; they have new rows")
    return lines


def _difference(replacement: Replacement) -> str:
    if not replacement.num_compared:
        return "nothing is left to compare it with"
    lost = replacement.num_tokens - replacement.num_compared
    return (
        f"{replacement.num_differing:,} of {replacement.num_compared:,} tokens differ "
        f"({100 * replacement.num_differing / replacement.num_compared:.3g} %)"
        + (f", {lost:,} could not be read any more" if lost else "")
    )


def result_lines(evaluation: Mapping[str, Any], methods: Collection[str] | None = None) -> list[str]:
    """An evaluation.json with rows as a table with a header, and sentences below it.

    Only `methods` are shown, all by default.
    """
    rows: Sequence[Row] = evaluation["rows"]
    batches = timed_batches(rows)
    measured = {key for row in rows for key, value in row.items() if value is not None}
    is_scored = bool(measured & SCORES.keys())
    measures = {key: title for key, title in SCORES.items() if key in measured} if is_scored else UNSCORED
    measures = measures | (CLIP if measured & CLIP.keys() else {})
    cells = tuple(
        (
            row["method"],
            *(format_mean(row.get(key), row.get(f"{key}_std"), 3, missing=TERMINAL_MISSING) for key in measures),
            *(time_cell(row, batch, ".2f", scale=1e3, missing=TERMINAL_MISSING) for batch in batches[:1]),
            *(speedup_cell(row, rows, batch, missing=TERMINAL_MISSING) for batch in batches),
        )
        for row in rows
        if methods is None or row["method"] in methods
    )
    header = (
        *("method", *measures.values()),
        *(f"ms/image at {batch}" for batch in batches[:1]),
        *(f"speed-up at {batch}" for batch in batches),
    )
    return [*Table(header, cells).text(), *_notes(evaluation)]


def teacher_distances(evaluation: Mapping[str, Any]) -> tuple[float, float] | None:
    """Distance of one step, and of the teacher itself, to the teacher's own images; None if it was not measured."""
    distances = {row["method"]: row.get("teacher_distance") for row in evaluation.get("rows", ())}
    student, teacher = distances.get("student-1"), distances.get("teacher")
    return None if student is None or teacher is None else (student, teacher)


def same_number_note(evaluation: Mapping[str, Any]) -> list[str]:
    """The Frechet distances of one step, the teacher and real images with the same number of images, in a clause.

    Empty if they were not measured.
    """
    distances = {row["method"]: row.get("frechet_distance_at_real_images") for row in evaluation["rows"]}
    names = {"student-1": "one step", "teacher": "the teacher", "real": "real images"}
    values = [f"{name} {distances[method]:.3f}" for method, name in names.items() if distances.get(method) is not None]
    return [f"with {evaluation['real_images']:,} images: {', '.join(values)}"] if len(values) == len(names) else []


def _notes(evaluation: Mapping[str, Any]) -> Iterator[str]:
    if (distances := teacher_distances(evaluation)) and "teacher_images" in evaluation:
        yield (
            f"Frechet distance to {evaluation['teacher_images']:,} of the teacher's own images: one step "
            f"{distances[0]:.3f}, the teacher itself {distances[1]:.3f}."
        )
    yield from (f"Frechet distance to real images {clause}." for clause in same_number_note(evaluation))
    yield from reference_row_notes(evaluation)
    yield from filter(None, [times_note(evaluation["rows"], evaluation.get("device", "cpu"))])


def describe_wall_time(results: Results) -> str:
    """Wall time by phase, summed over all runs of the command."""
    if not results.seconds:
        return "not measured"
    phases = [f"{phase} {duration(seconds)}" for phase, seconds in results.seconds.items()]
    return ", ".join([*phases, f"{duration(sum(results.seconds.values()))} in all"])
