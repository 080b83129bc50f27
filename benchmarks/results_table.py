"""Tables of docs/explanation/results.md: mean and standard error over runs of one preset with different training seeds.

Prints Markdown: the commands that made the runs, then the table. All numbers come from the runs' evaluation.json, so the
table can be printed again from the runs' folders.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from script import Script, markdown

from pipeline.cli.options import FolderPath, preset_argument
from pipeline.config.keys import leaves
from pipeline.config.run_config import RunConfig, compose
from pipeline.report.method_table import short_parameters
from pipeline.report.run_page import MEASURES
from pipeline.report.table import Table, format_number
from pipeline.run_folder.results import (
    Row,
    describe_evaluation,
    same_student,
    seconds_per_image,
    speedup,
    timed_batches,
)
from pipeline.run_folder.run_dir import RunDir
from shards.core.errors import Refused
from shards.core.mismatch import flat
from shards.core.settings import FREE

SEED = "train.seed"
EMPTY = ""
EVALUATE_OPTIONS = {"num_images": "--num-images", "seed": "--seed", "repeats": "--repeats"}
"""Setting of the evaluation -> option of `tokenleap evaluate`."""


@dataclass(frozen=True)
class EvaluatedRun:
    """A run and its evaluation."""

    run_dir: RunDir
    config: RunConfig
    evaluation: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> EvaluatedRun:
        """Read a run from its folder.

        Raises:
            Refused: the folder is not a run, or its student is not evaluated.
        """
        run_dir = RunDir(folder)
        config, evaluation = run_dir.read_config(), run_dir.read_json(run_dir.evaluation)
        exported = run_dir.read_json(run_dir.student / "config.json")
        if not evaluation or not same_student(evaluation, exported):
            raise Refused(f"{folder}: its student is not evaluated; run `tokenleap evaluate {folder}`")
        return cls(run_dir, config, evaluation)

    @property
    def rows(self) -> Sequence[Row]:
        return tuple(self.evaluation["rows"])

    def row(self, method: str) -> Row:
        return next(row for row in self.rows if row["method"] == method)


def refuse_other_runs(runs: Sequence[EvaluatedRun]) -> None:
    """Check that the runs of a table differ only in their training seed.

    Raises:
        Refused: the runs differ in another setting or in their evaluation, or two runs have the same seed.
    """
    first = runs[0]
    seeds = [run.config.train.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise Refused(f"{SEED}: {', '.join(map(str, seeds))}: each run of a table must have a different seed")
    for run in runs[1:]:
        root, first_root = run.run_dir.root, first.run_dir.root
        keys = [key for key in changes(first.config, run.config) if key != SEED]
        if keys:
            raise Refused(f"{root} differs from {first_root} in {', '.join(keys)}")
        protocols = [describe_evaluation(each.evaluation) for each in (run, first)]
        if protocols[0] != protocols[1]:
            raise Refused(f"{root} was evaluated by {protocols[0]}, {first_root} by {protocols[1]}")
        counts = [each.evaluation.get("teacher_images") for each in (run, first)]
        if counts[0] != counts[1]:
            raise Refused(f"{root} was compared with {counts[0]} images of the teacher, {first_root} with {counts[1]}")
        methods = [[row["method"] for row in each.rows] for each in (run, first)]
        if methods[0] != methods[1]:
            raise Refused(f"{root} and {first_root} were evaluated with different methods")


def changes(before: RunConfig, after: RunConfig) -> dict[str, Any]:
    """The keys that can affect results and differ between two configurations, with the second's values."""
    marks = {key: field.json_schema_extra for key, field in leaves(RunConfig)}
    old, new = flat(before.model_dump()), flat(after.model_dump())
    return {key: new[key] for key, mark in marks.items() if old[key] != new[key] and mark != FREE}


def commands_of(preset: str, run: EvaluatedRun) -> Iterator[str]:
    """The command that makes a run and, if it was evaluated again with other options, that command."""
    arguments = ["tokenleap", "run", preset, "--out", str(run.run_dir.root)]
    for key, value in changes(compose(preset), run.config).items():
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        arguments += ["--set", f"{key}={text}"]
    yield shlex.join(arguments)
    settings, evaluated = run.config.evaluation.result_settings, {"repeats": 1, **run.evaluation}
    options = [
        argument
        for key, option in EVALUATE_OPTIONS.items()
        if evaluated[key] != settings[key]
        for argument in (option, str(evaluated[key]))
    ]
    if options:
        yield shlex.join(["tokenleap", "evaluate", str(run.run_dir.root), *options])


def table(runs: Sequence[EvaluatedRun]) -> Table:
    """A row for each method, with mean and standard error over the runs, without empty columns."""
    columns: list[tuple[str, Callable[[EvaluatedRun, Row], float | None], str]] = [
        (title, lambda _, row, key=key: row.get(key), f".{digits}f") for key, title, digits in MEASURES
    ]
    for size in timed_batches(runs[0].rows):
        for decoding in (False, True):
            suffix = f"batch {size}{', with decoding' if decoding else ''}"
            columns += [
                (f"ms/image, {suffix}", partial(_milliseconds, size=size, decoding=decoding), ".3g"),
                (f"speed-up, {suffix}", partial(_speedup, size=size, decoding=decoding), ".3g"),
            ]
    rows = tuple(
        (
            row["method"],
            format_number(row.get("num_steps"), "d", missing=EMPTY),
            EMPTY if row.get("num_parameters") is None else short_parameters(row["num_parameters"]),
            *(with_error([number(run, run.row(row["method"])) for run in runs], spec) for _, number, spec in columns),
        )
        for row in runs[0].rows
    )
    header = ("method", "steps", "parameters", *(title for title, _, _ in columns))
    return Table(header, rows).without_empty_columns()


def _milliseconds(_: EvaluatedRun, row: Row, size: int, decoding: bool) -> float | None:
    seconds = seconds_per_image(row, size, decoding=decoding)
    return None if seconds is None else 1e3 * seconds


def _speedup(run: EvaluatedRun, row: Row, size: int, decoding: bool) -> float | None:
    return speedup(row, run.rows, size, decoding=decoding)


def with_error(values: Sequence[float | None], spec: str) -> str:
    """Mean and standard error in a format specification.

    The result is the mean alone if the error is zero or there is one value, and empty if a value is missing.
    """
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values) or not numbers:
        return EMPTY
    mean = statistics.fmean(numbers)
    error = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else 0.0
    return f"{mean:{spec}}" if error == 0.0 else f"{mean:{spec}} ± {error:{spec}}"


def page(preset: str, runs: Sequence[EvaluatedRun]) -> list[str]:
    """The lines of a preset's section of docs/explanation/results.md."""
    refuse_other_runs(runs)
    seeds = ", ".join(str(run.config.train.seed) for run in runs)
    over = "one training seed"
    if len(runs) > 1:
        over = f"mean ± standard error over {len(runs)} training seeds ({seeds})"
    folders = shlex.join([str(run.run_dir.root) for run in runs])
    results = table(runs)
    return [
        "```",
        *(command for run in runs for command in commands_of(preset, run)),
        f"python benchmarks/results_table.py {preset} {folders}",
        "```",
        "",
        f"Protocol {describe_evaluation(runs[0].evaluation)}; {over}.",
        "",
        markdown(results.header, results.rows),
    ]


@click.command(cls=Script)
@preset_argument
@click.argument("runs", type=FolderPath, nargs=-1, required=True)
def main(preset: str, runs: tuple[Path, ...]) -> None:
    """Print the table of RUNS, folders of `tokenleap run PRESET` that differ only in train.seed."""
    click.echo("\n".join(page(preset, [EvaluatedRun.read(folder) for folder in runs])))


if __name__ == "__main__":
    main()
