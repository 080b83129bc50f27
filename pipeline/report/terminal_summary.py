"""The summary that a run prints on the terminal when it ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.report.table import Table, terminal_number
from pipeline.run_folder.results import PairStatistics, Results, Row, describe_evaluation, seconds_per_image, speedup
from pipeline.runtime.progress import duration
from shards.dataset.replace_shard import Replacement

SCORES = {"frechet_distance": "Frechet", "precision": "precision", "recall": "recall", "class_accuracy": "accuracy"}
UNSCORED = {"token_match": "token match"}
"""Shown instead of `SCORES` if the evaluation has no real images."""
CLIP = {"clip_score": "CLIP"}
"""Shown in addition if the evaluation used a CLIP model."""
SUMMARY_METHODS = ("real", "teacher", "student-1", "student-2", "onestep*")
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
        *table_lines(results.rows, SUMMARY_METHODS),
        f"wall time {describe_wall_time(results)}",
        f"saved in  {run_dir.student} (student), {run_dir.samples} (images), {run_dir.report} (report)",
    ]


def pairs_line(pairs: PairStatistics) -> str:
    """Totals of a pair data set in one line."""
    return (
        f"{pairs.num_training:,} for training, {pairs.num_heldout:,} held out, {pairs.num_shards:,} shards, "
        f"{pairs.num_bytes / 1e6:,.1f} MB, {pairs.pairs_per_second:,.1f} pairs/s a worker"
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


def table_lines(rows: Sequence[Row], methods: Collection[str] | None = None) -> list[str]:
    """Rows of evaluation.json as a table with a header; no lines if there are no rows.

    Only `methods` are shown, all by default; `rows` must include the teacher's, to which speed-ups refer.
    """
    measured = {key for row in rows for key, value in row.items() if value is not None}
    measures = (SCORES if measured & SCORES.keys() else UNSCORED) | (CLIP if measured & CLIP.keys() else {})
    cells = tuple(
        (
            row["method"],
            *(terminal_number(row.get(key), ".3f") for key in measures),
            terminal_number(milliseconds_per_image(row), ".2f"),
            terminal_number(speedup(row, rows), ".1f"),
        )
        for row in rows
        if methods is None or row["method"] in methods
    )
    header = ("method", *measures.values(), "ms/image", "speed-up")
    return Table(header, cells).text() if cells else []


def milliseconds_per_image(row: Row, batch_size: int = 1) -> float | None:
    """A method's time per image at a batch size, None if it was not measured."""
    seconds = seconds_per_image(row, batch_size)
    return None if seconds is None else 1e3 * seconds


def describe_wall_time(results: Results) -> str:
    """Wall time by phase, summed over all runs of the command."""
    if not results.seconds:
        return "not measured"
    phases = [f"{phase} {duration(seconds)}" for phase, seconds in results.seconds.items()]
    return ", ".join([*phases, f"{duration(sum(results.seconds.values()))} in all"])
