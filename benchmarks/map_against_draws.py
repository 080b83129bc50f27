"""Compare the sequences of the flow map with multinomial draws from the teacher, by images and by tokens.

By images: Frechet distances of both, over several seeds. By tokens: at every position a chi-square test that mapped
and drawn tokens have the same frequencies. The test is computed for each class and summed, so that it also detects a
map that confuses classes.

    python benchmarks/map_against_draws.py digits --seeds 5
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import click
import numpy as np
import torch
from sampled_teacher import SampledTeacher, digits_scorer
from scipy.stats import chi2, chi2_contingency
from script import Script, markdown
from torch import Tensor

from generate_pairs.digits.dataset import load_digits_split
from pipeline.cli.options import preset_argument, set_option
from pipeline.config.run_config import compose
from pipeline.runtime.progress import progress

FEWEST_COUNTS = 20
"""Of mapped and drawn tokens together. Rarer tokens share a cell, because the chi-square law needs large counts."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Mean of at least two values."""
        return cls(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True)
class ChiSquare:
    """A statistic that follows the chi-square law if both samples come from one distribution."""

    statistic: float
    degrees: int

    @property
    def p(self) -> float:
        """Probability of a statistic at least as large."""
        return float(chi2.sf(self.statistic, self.degrees)) if self.degrees else 1.0


def with_shared_cells(counts_2V: np.ndarray, fewest: int) -> np.ndarray:
    """Merge the rare values of counts (2, V) into one cell; if that cell is rare too, into the smallest other one."""
    rare_V = counts_2V.sum(axis=0) < fewest
    cells, rest = counts_2V[:, ~rare_V], counts_2V[:, rare_V].sum(axis=1)
    if rest.sum() >= fewest or cells.shape[1] == 0:
        return np.column_stack([cells, rest])
    cells[:, cells.sum(axis=0).argmin()] += rest
    return cells


def compare_position(mapped_N: Tensor, drawn_N: Tensor, labels_N: Tensor, vocab_size: int) -> ChiSquare:
    """Test the homogeneity of one position's mapped and drawn tokens (N,), summed over classes."""
    statistic, degrees = 0.0, 0
    for label in labels_N.unique():
        of_class = labels_N == label
        samples = (mapped_N[of_class], drawn_N[of_class])
        counts = torch.stack([sample.bincount(minlength=vocab_size) for sample in samples])
        cells = with_shared_cells(counts.numpy(), FEWEST_COUNTS)
        if cells.shape[1] > 1:
            tested = chi2_contingency(cells, correction=False)
            statistic, degrees = statistic + float(tested.statistic), degrees + int(tested.dof)
    return ChiSquare(statistic, degrees)


@click.command(cls=Script)
@preset_argument
@click.option("--seeds", type=click.IntRange(min=2), default=5, show_default=True, help="Seeds of each kind.")
@set_option
def main(preset: str, seeds: int, settings: tuple[str, ...]) -> None:
    """Compare mapped with drawn sequences; print two tables."""
    config = compose(preset, settings)
    torch.set_num_threads(config.train.threads)
    sampled, scorer = SampledTeacher.of(config), digits_scorer(load_digits_split())
    kinds = {"teacher": sampled.draw, "teacher-flow": sampled.map}
    tokens: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    distances: dict[str, list[float]] = {kind: [] for kind in kinds}
    with progress("sequences", "seeds") as report:
        for seed in range(seeds):
            for kind, make in kinds.items():
                tokens_NL = make(seed)
                scores = scorer.scores(sampled.images(tokens_NL), sampled.labels_N)
                tokens[kind].append(tokens_NL)
                distances[kind].append(scores["frechet_distance"])
            report(seed + 1, seeds, "")

    means = {kind: Mean.of(values) for kind, values in distances.items()}
    drawn, mapped = means["teacher"], means["teacher-flow"]
    apart = (mapped.value - drawn.value) / math.hypot(mapped.error, drawn.error)
    click.echo(f"{seeds} seeds of {len(sampled.labels_N):,} images each\n")
    header = ["method", "Frechet distance", "standard error"]
    click.echo(markdown(header, [[k, f"{m.value:.4f}", f"{m.error:.4f}"] for k, m in means.items()]))
    click.echo(f"\nteacher-flow is {apart:+.2f} standard errors of the difference from teacher\n")

    mapped_ML, drawn_ML = torch.cat(tokens["teacher-flow"]), torch.cat(tokens["teacher"])
    labels_M, vocab_size = sampled.labels_N.repeat(seeds), sampled.teacher.vocab_size
    tests = [
        compare_position(mapped_ML[:, position], drawn_ML[:, position], labels_M, vocab_size)
        for position in range(mapped_ML.shape[1])
    ]
    header = ["position", "chi-square", "degrees of freedom", "p"]
    rows = [[str(at), f"{t.statistic:.1f}", str(t.degrees), f"{t.p:.4f}"] for at, t in enumerate(tests)]
    click.echo(markdown(header, rows))
    smallest = min(1.0, len(tests) * min(test.p for test in tests))
    click.echo(f"\n{len(labels_M):,} sequences of each kind; smallest p times {len(tests)}: {smallest:.3f}")


if __name__ == "__main__":
    main()
