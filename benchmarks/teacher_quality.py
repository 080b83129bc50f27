"""How good is a teacher, at a preset's sampling settings? The ceiling of every student that it teaches.

`real` are the test digits, `reconstruction` the training digits through the tokenizer and back, `teacher` what it
samples, mean and spread (standard deviation) over seeds. With --teacher, a retrained one, to compare.

    python benchmarks/teacher_quality.py digits --teacher retrained.safetensors --seeds 3
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import click
import torch
from sampled_teacher import SampledTeacher, digits_judge
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
    """A method's scores, one mapping a seed, as cells: the number, or mean and spread of several."""
    columns = [[one[column] for one in scores] for column in COLUMNS]
    return [name, *map(_cell, columns)]


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


@click.command(cls=Script)
@preset_argument
@click.option("--teacher", metavar="FILE", help="A teacher in place of the preset's: its name or file.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Times it samples.")
@set_option
def main(preset: str, teacher: str | None, seeds: int, settings: tuple[str, ...]) -> None:
    """Judge a teacher at a preset's sampling settings; prints a table."""
    config = compose(preset, [*settings, *([f"teacher.name={teacher}"] if teacher else [])])
    torch.set_num_threads(config.train.threads)
    split, sampled = load_digits_split(), SampledTeacher.of(config)
    scorer, tokenizer = digits_judge(split), sampled.teacher.tokenizer
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
