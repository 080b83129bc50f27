"""Score a teacher at a preset's sampling settings: an upper bound for its students.

Rows: `real` are the test digits, `reconstruction` the training digits encoded and decoded by the tokenizer, `teacher` its
samples, mean and standard deviation over seeds. --teacher scores a retrained teacher instead of the preset's.

    python benchmarks/teacher_quality.py digits --teacher retrained.safetensors --seeds 3
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import click
import torch
from sampled_teacher import SampledTeacher, digits_scorer
from script import Script, markdown

from generate_pairs.digits.dataset import load_digits_split
from generate_pairs.teachers.base import to_unit_range
from pipeline.cli.options import preset_argument, set_option
from pipeline.config.run_config import compose
from pipeline.runtime.progress import progress

COLUMNS = {
    "frechet_distance": "Frechet",
    "inception_score": "inception score",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "accuracy",
}


def table_row(name: str, scores: Sequence[Mapping[str, float]]) -> list[str]:
    """A method's scores (one mapping for each seed) as cells: the number, or mean and standard deviation of several."""
    columns = [[one[column] for one in scores] for column in COLUMNS]
    return [name, *map(_cell, columns)]


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


@click.command(cls=Script)
@preset_argument
@click.option("--teacher", metavar="FILE", help="Name or file of a teacher to use instead of the preset's.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Number of seeds.")
@set_option
def main(preset: str, teacher: str | None, seeds: int, settings: tuple[str, ...]) -> None:
    """Score a teacher at a preset's sampling settings; print a table."""
    config = compose(preset, [*settings, *([f"teacher.name={teacher}"] if teacher else [])])
    torch.set_num_threads(config.train.threads)
    split, sampled = load_digits_split(), SampledTeacher.of(config)
    scorer, tokenizer = digits_scorer(split), sampled.teacher.tokenizer
    with torch.inference_mode():
        tokens = tokenizer.encode(split.train_images)
    made = []
    with progress("teacher", "seeds") as report:
        for seed in range(seeds):
            made.append(scorer.scores(sampled.images(sampled.draw(seed)), sampled.labels_N))
            report(seed + 1, seeds, "")
    rows = [
        table_row("real", [scorer.scores(to_unit_range(split.test_images), split.test_labels)]),
        table_row("reconstruction", [scorer.scores(sampled.images(tokens), split.train_labels)]),
        table_row("teacher", made),
    ]
    click.echo(f"{config.teacher.name}, {seeds} seeds of {len(sampled.labels_N):,} images\n")
    click.echo(markdown(["method", *COLUMNS.values()], rows))


if __name__ == "__main__":
    main()
