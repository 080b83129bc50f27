"""The tables of docs/results.md: what runs of one preset measured, one run a training seed, mean and standard error.

Prints Markdown: the commands that made the runs, then the table. Numbers come from each run's evaluation.json alone, so
the page can be made again from the runs' folders.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from script import Script, markdown

from pipeline.cli.options import FolderPath, preset_argument
from pipeline.config.keys import leaves
from pipeline.config.run_config import RunConfig, compose
from pipeline.report.method_table import short_parameters
from pipeline.report.run_page import MEASURES
from pipeline.run_folder.results import (
    Row,
    describe_evaluation,
    same_student,
    seconds_per_image,
    speedup,
    steady_batch,
)
from pipeline.run_folder.run_dir import RunDir
from shards.core.errors import Refused
from shards.core.mismatch import flat
from shards.core.settings import FREE

SEED = "train.seed"
NOTHING = ""
JUDGING = {"num_images": "--num-images", "seed": "--seed", "repeats": "--repeats"}
"""Options of `tokenleap evaluate`, by the settings that they stand for."""


@dataclass(frozen=True)
class Judged:
    """A run and its evaluation."""

    run_dir: RunDir
    config: RunConfig
    evaluation: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Judged:
        """What a folder holds.

        Raises:
            Refused: it is no run, or its student is not judged.
        """
        run_dir = RunDir(folder)
        config, evaluation = run_dir.read_config(), run_dir.read_json(run_dir.evaluation)
        exported = run_dir.read_json(run_dir.student / "config.json")
        if not evaluation or not same_student(evaluation, exported):
            raise Refused(f"{folder}: its student is not judged; `tokenleap evaluate {folder}` does it")
        return cls(run_dir, config, evaluation)

    @property
    def rows(self) -> Sequence[Row]:
        return tuple(self.evaluation["rows"])

    def row(self, method: str) -> Row:
        return next(row for row in self.rows if row["method"] == method)


def refuse_other_runs(runs: Sequence[Judged]) -> None:
    """Runs of one table differ in their training seed, and in nothing else.

    Raises:
        Refused: they differ elsewhere, were judged otherwise, or two have one seed.
    """
    first = runs[0]
    seeds = [run.config.train.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise Refused(f"{SEED}: {', '.join(map(str, seeds))}: each run of a table needs its own")
    for run in runs[1:]:
        keys = [key for key in changes(first.config, run.config) if key != SEED]
        if keys:
            raise Refused(f"{run.run_dir.root} differs from {first.run_dir.root} in {', '.join(keys)}")
        if describe_evaluation(run.evaluation) != describe_evaluation(first.evaluation):
            raise Refused(
                f"{run.run_dir.root} was judged by {describe_evaluation(run.evaluation)}, {first.run_dir.root} by "
                f"{describe_evaluation(first.evaluation)}"
            )
        counts = [one.evaluation.get("teacher_images") for one in (first, run)]
        if counts[0] != counts[1]:
            raise Refused(
                f"{run.run_dir.root} was held against {counts[1]} images of the teacher, {first.run_dir.root} against "
                f"{counts[0]}"
            )
        methods = [[row["method"] for row in one.rows] for one in (first, run)]
        if methods[0] != methods[1]:
            raise Refused(f"{run.run_dir.root} and {first.run_dir.root} were judged with different methods")


def changes(before: RunConfig, after: RunConfig) -> dict[str, Any]:
    """The keys in which two configurations differ and results may with them, with the second's values."""
    marks = {key: field.json_schema_extra for key, field in leaves(RunConfig)}
    there, asked = flat(before.model_dump()), flat(after.model_dump())
    return {key: asked[key] for key, mark in marks.items() if there[key] != asked[key] and mark != FREE}


def commands_of(preset: str, run: Judged) -> Iterator[str]:
    """The command that makes a run, and the one that judged it again with other noise or more images, if one did."""
    words = ["tokenleap", "run", preset, "--out", str(run.run_dir.root)]
    for key, value in changes(compose(preset), run.config).items():
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        words += ["--set", f"{key}={text}"]
    yield shlex.join(words)
    asked, judged = run.config.evaluation.asked, {"repeats": 1, **run.evaluation}
    again = [(option, judged[key]) for key, option in JUDGING.items() if judged[key] != asked[key]]
    if again:
        options = [word for option, value in again for word in (option, str(value))]
        yield shlex.join(["tokenleap", "evaluate", str(run.run_dir.root), *options])


def table(runs: Sequence[Judged]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a method a row, mean and standard error over the runs; columns without a number are dropped."""
    batch = steady_batch(runs[0].rows)
    columns: list[tuple[str, Callable[[Judged, Row], float | None], Callable[[float], str]]] = [
        (title, lambda _, row, key=key: row.get(key), lambda value, digits=digits: f"{value:.{digits}f}")
        for key, title, digits in MEASURES
    ]
    columns += [
        (f"ms/image, batch {size}", lambda _, row, size=size: _milliseconds(row, size), _three_digits)
        for size in ([1, batch] if batch not in (None, 1) else [1])
        if size is not None
    ]
    if batch is not None:
        columns.append(
            (
                f"speed-up, batch {batch}",
                lambda run, row: speedup(row, run.rows, batch),
                lambda value: f"{value:.3g}",
            )
        )
    header = ["method", "steps", "parameters", *(title for title, _, _ in columns)]
    lines = []
    for row in runs[0].rows:
        own = [(run, run.row(row["method"])) for run in runs]
        steps = row.get("num_steps")
        cells = [
            with_error([number(run, other) for run, other in own], shown) for _, number, shown in columns
        ]
        lines.append(
            [
                row["method"],
                NOTHING if steps is None else str(steps),
                NOTHING if row.get("num_parameters") is None else short_parameters(row["num_parameters"]),
                *cells,
            ]
        )
    kept = [column for column in range(len(header)) if any(line[column] for line in lines)]
    return [header[column] for column in kept], [[line[column] for column in kept] for line in lines]


def with_error(values: Sequence[float | None], shown: Callable[[float], str]) -> str:
    """Mean and standard error, the mean alone of one value or of equal ones; nothing where a run has none."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values) or not numbers:
        return NOTHING
    mean = statistics.fmean(numbers)
    error = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else 0.0
    return shown(mean) if error == 0.0 else f"{shown(mean)} ± {shown(error)}"


def page(preset: str, runs: Sequence[Judged]) -> list[str]:
    """The lines of a preset's part of docs/results.md."""
    refuse_other_runs(runs)
    seeds = ", ".join(str(run.config.train.seed) for run in runs)
    over = "one training seed"
    if len(runs) > 1:
        over = f"mean ± standard error over {len(runs)} training seeds ({seeds})"
    folders = shlex.join([str(run.run_dir.root) for run in runs])
    return [
        "```",
        *(command for run in runs for command in commands_of(preset, run)),
        f"python benchmarks/results_table.py {preset} {folders}",
        "```",
        "",
        f"Protocol {describe_evaluation(runs[0].evaluation)}; {over}.",
        "",
        markdown(*table(runs)),
    ]


def _milliseconds(row: Row, size: int) -> float | None:
    seconds = seconds_per_image(row, size)
    return None if seconds is None else 1e3 * seconds


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


@click.command(cls=Script)
@preset_argument
@click.argument("runs", type=FolderPath, nargs=-1, required=True)
def main(preset: str, runs: tuple[Path, ...]) -> None:
    """Print the table of RUNS, folders of `tokenleap run PRESET` that differ in train.seed alone."""
    click.echo("\n".join(page(preset, [Judged.read(folder) for folder in runs])))


if __name__ == "__main__":
    main()
