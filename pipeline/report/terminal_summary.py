"""The end of a run on the terminal: ten lines that say what the report says, and where everything lies."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.run_folder.results import (
    PairStatistics,
    Results,
    Row,
    describe_evaluation,
    seconds_per_image,
    speedup,
)
from pipeline.runtime.progress import duration
from shards.dataset.replace_shard import Replacement

SCORES = (
    ("frechet_distance", "Frechet"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("class_accuracy", "accuracy"),
)
UNSCORED = (("token_match", "token match"),)
"""What is told of a method: scores against real images, or without these how well it follows the teacher."""
CLIP = ("clip_score", "CLIP")
"""Besides, where a CLIP was asked."""

SUMMARY_METHODS = ("real", "teacher", "student-1", "student-2", "onestep*")
NOTHING = "-"
MANY = 20
"""So many lines about shards are read; more are not."""


def summary_lines(results: Results) -> list[str]:
    """What a run has come to, in about ten lines."""
    config, run_dir = results.config, results.run_dir
    lines = [f"run       {run_dir.root}"]
    if results.pairs:
        lines.append(f"pairs     {pairs_line(results.pairs)}")
    lines.append(
        f"student   {config.train.num_steps:,} steps of {config.train.batch_size} pairs, "
        f"timesteps {','.join(map(str, config.student.timesteps))}, split {config.student.split}"
    )
    if results.rows:
        lines.append(f"judged    {describe_evaluation(results.evaluation)}")
    lines += table_lines(results.rows, SUMMARY_METHODS)
    lines.append(f"took      {took(results)}")
    lines.append(
        f"lies in   {run_dir.student} (student), {run_dir.samples} (images), {run_dir.report} (report)"
    )
    return lines


def pairs_line(pairs: PairStatistics) -> str:
    """Totals of a pair data set in one line."""
    return (
        f"{pairs.num_training:,} for training, {pairs.num_heldout:,} held out, {pairs.num_shards:,} shards, "
        f"{pairs.num_bytes / 1e6:,.1f} MB, {pairs.pairs_per_second:,.1f} pairs/s a worker"
    )


def replacement_lines(replaced: Sequence[Replacement]) -> list[str]:
    """How shards that were made again compare with the old ones, a line each; many alike are summed up."""
    equal = [one.row.shard for one in replaced if one.is_equal]
    others = [one for one in replaced if not one.is_equal]
    if len(equal) > MANY:
        lines = [f"{len(equal):,} shards: equal to what was committed"]
    else:
        lines = [f"{shard}: equal to what was committed" for shard in equal]
    lines += [f"{one.row.shard}: {_difference(one)}; it has a new row" for one in others[:MANY]]
    if more := others[MANY:]:
        total = Replacement(
            row=more[0].row,
            is_equal=False,
            num_tokens=sum(one.num_tokens for one in more),
            num_compared=sum(one.num_compared for one in more),
            num_differing=sum(one.num_differing for one in more),
        )
        lines.append(f"{len(more):,} shards more: {_difference(total)}; they have new rows")
    return lines


def _difference(one: Replacement) -> str:
    if not one.num_compared:
        return "nothing is left to compare it with"
    lost = one.num_tokens - one.num_compared
    return (
        f"{one.num_differing:,} of {one.num_compared:,} tokens differ "
        f"({100 * one.num_differing / one.num_compared:.3g} %)"
        + (f", {lost:,} could not be read any more" if lost else "")
    )


def table_lines(rows: Sequence[Row], methods: Collection[str] | None = None) -> list[str]:
    """Rows of evaluation.json as a table with a header; no lines where there is no row.

    Args:
        rows: all of them; the teacher's times are what speed-ups refer to.
        methods: which to show; all by default.
    """
    scored = any(row.get(key) is not None for row in rows for key, _ in SCORES)
    fits = any(row.get(CLIP[0]) is not None for row in rows)
    measures = [*(SCORES if scored else UNSCORED), *([CLIP] if fits else [])]
    cells = [
        [
            row["method"],
            *(_number(row.get(key), 3) for key, _ in measures),
            _number(seconds_per_image(row), 2, scale=1e3),
            _number(speedup(row, rows), 1),
        ]
        for row in rows
        if methods is None or row["method"] in methods
    ]
    header = ["method", *(title for _, title in measures), "ms/image", "speed-up"]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in ([header, *cells] if cells else [])
    ]


def took(results: Results) -> str:
    """Wall time by phase, all runs of the command together."""
    phases = [f"{phase} {duration(seconds)}" for phase, seconds in results.seconds.items()]
    return (
        ", ".join([*phases, f"{duration(sum(results.seconds.values()))} in all"])
        if phases
        else "not measured"
    )


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return NOTHING if value is None else f"{value * scale:.{digits}f}"
