"""A saturating power law of a metric over the number of pairs, with intervals, and the sentence that reports it.

The curve is y(n) = a + b n^-c: the form of Hestness et al. 2017 (arXiv 1712.00409), and of Rosenfeld et al. 2020
(arXiv 1909.12673) for one network size. For fixed c it is a straight line over n^-c, so every parameter except c is
integrated in closed form. The posterior is a mixture of Student t distributions; no random numbers are used.

Assumptions:

- The error of a run is Gaussian, with the same variance at all sizes. An unknown share of the variance is common to the
  runs of one size, because they train on the same pairs. Without this share, more seeds would narrow the intervals too
  much.
- The prior is uniform over the logarithm of the exponent, the share, the values at the smallest and at the largest size,
  and the logarithm of the variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shards.format.spec import Array

MIN_SIZES = 5
"""Fewest distinct sizes for a fit: three parameters, and two more values to estimate the error."""
EXPONENTS = (0.02, 3.0)
"""Range of exponents: from almost a straight line over log n to a curve that is flat after one doubling."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the variance that are common to the runs of one size: midpoints of a uniform distribution."""
LEVEL = 0.9
"""Probability of an interval."""
MISFIT = 0.01
"""Approximate probability of rejecting a true power law if half of the variance is common to the runs of a size."""


@dataclass(frozen=True)
class Change:
    """The change y(2n) - y(n): its median and its 90 % interval."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class NoFit:
    """No power law was fitted; `reason` completes a sentence."""

    reason: str


class Runs(NamedTuple):
    """N runs of K ascending sizes: count and mean by size, the sum of squares within sizes, and df = N - 2."""

    size_K: Array
    count_K: Array
    mean_K: Array
    within: float
    df: int


class Lines(NamedTuple):
    """C weighted straight lines over `_axis`; level and slope are independent at the centre.

    `total_C` is the sum of the weights, `square_C` the weighted sum of squares along the axis, and `residual_C` that of
    the residuals.
    """

    exponent_C: Array
    centre_C: Array
    level_C: Array
    slope_C: Array
    total_C: Array
    square_C: Array
    residual_C: Array


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """The posterior of y(n) = a + b n^-c: the least-squares curve, and C lines with their probabilities.

    Attributes:
        limit: a of the least-squares curve, the limit for infinitely many pairs, in the metric's unit.
        scale: b of the least-squares curve; positive if the metric decreases.
        exponent: c of the least-squares curve, within `EXPONENTS`.
        sizes: the smallest and the largest size.
        origin: the metric's value at zero of the lines.
        unit: the metric's difference for one unit of the lines.
        df: degrees of freedom of each line's Student t.
    """

    limit: float
    scale: float
    exponent: float
    sizes: tuple[float, float]
    origin: float
    unit: float
    df: int
    lines: Lines
    probability_C: Array

    def at(self, size_N: Array) -> tuple[Array, Array, Array]:
        """Median, low end and high end of the 90 % interval, each (N,), of the curve at sizes (N,) > 0.

        The interval does not include the error of a single run.
        """
        lines = self.lines
        sizes_N1 = np.asarray(size_N, dtype=np.float64)[:, None]
        along_NC = _axis(sizes_N1, lines.exponent_C, self.sizes) - lines.centre_C
        variance_NC = 1 / lines.total_C + along_NC**2 / lines.square_C
        quantiles_3N = self._quantiles(lines.level_C + lines.slope_C * along_NC, variance_NC)
        middle, low, high = self.origin + self.unit * quantiles_3N
        return middle, low, high

    def doubling(self, size: float) -> Change:
        """The change of the curve from `size` > 0 pairs to twice as many; its interval never contains zero."""
        smallest, largest = self.sizes
        c = self.lines.exponent_C
        # The difference along the axis in closed form: a subtraction would lose digits where the curve is flat.
        step_C = (size / largest) ** -c * np.expm1(-c * np.log(2)) / np.expm1(c * np.log(largest / smallest))
        mean_1C, variance_1C = (self.lines.slope_C * step_C)[None], (step_C**2 / self.lines.square_C)[None]
        return Change(*(self.unit * self._quantiles(mean_1C, variance_1C)[:, 0]).tolist())

    def _quantiles(self, mean_NC: Array, variance_NC: Array) -> Array:
        """Median, low end and high end (3, N) of mixtures over the lines, by Newton's method within a bracket."""
        from scipy import stats

        spread_NC = np.sqrt(variance_NC * self.lines.residual_C / self.df)
        tail_31 = np.array([[0.5], [(1 - LEVEL) / 2], [(1 + LEVEL) / 2]])
        # With three or more degrees of freedom, the 5 % and 95 % quantiles of each line are within three spreads.
        low_3N = np.broadcast_to((mean_NC - 3 * spread_NC).min(axis=1), (3, len(mean_NC)))
        high_3N = np.broadcast_to((mean_NC + 3 * spread_NC).max(axis=1), (3, len(mean_NC)))
        next_3N = (low_3N + high_3N) / 2
        for _ in range(200):
            guess_3N = next_3N
            standard_3NC = (guess_3N[..., None] - mean_NC) / spread_NC
            below_3N = stats.t.cdf(standard_3NC, self.df) @ self.probability_C
            density_3N = (stats.t.pdf(standard_3NC, self.df) / spread_NC) @ self.probability_C
            is_low_3N = below_3N < tail_31
            low_3N, high_3N = np.where(is_low_3N, guess_3N, low_3N), np.where(is_low_3N, high_3N, guess_3N)
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                next_3N = guess_3N + (tail_31 - below_3N) / density_3N
            next_3N = np.where((low_3N <= next_3N) & (next_3N <= high_3N), next_3N, (low_3N + high_3N) / 2)
            # Relative to the quantile, which far from the data can be much smaller than the widest line's spread.
            if (np.abs(next_3N - guess_3N) <= 1e-10 * np.abs(next_3N)).all():
                break
        return next_3N


def fit_power_law(size_N: Array, value_N: Array) -> PowerLaw | NoFit:
    """Fit y(n) = a + b n^-c, with c > 0 and b of either sign, to a metric (N,) of N runs with numbers of pairs (N,).

    Returns:
        The power law, or the reason why there is none: fewer than `MIN_SIZES` sizes, values that are not finite or all
        equal, a lack of fit compared with the scatter of the seeds, or an interval of the change that contains zero.

    Raises:
        ValueError: the arguments are not two arrays (N,) of the same length, or a size is not a positive number.
    """
    size_N, value_N = np.asarray(size_N, dtype=np.float64), np.asarray(value_N, dtype=np.float64)
    if size_N.ndim != 1 or size_N.shape != value_N.shape:
        raise ValueError(f"sizes and values must have the same length, got shapes {size_N.shape} and {value_N.shape}")
    if not (np.isfinite(size_N) & (size_N > 0)).all():
        raise ValueError("sizes must be positive numbers of pairs")
    if num_bad := np.count_nonzero(~np.isfinite(value_N)):
        return NoFit(f"{num_bad} of {len(value_N)} values are not finite")
    # Sort, because the last bit of a sum depends on the order of its terms.
    order = np.lexsort((value_N, size_N))
    size_K, index_N, count_K = np.unique(size_N[order], return_inverse=True, return_counts=True)
    if len(size_K) < MIN_SIZES:
        return NoFit(f"a curve needs at least {MIN_SIZES} sizes, and there are {len(size_K)}")
    origin, unit = float(value_N.min()), float(np.ptp(value_N))
    rounding = 4 * np.finfo(np.float64).eps * float(np.abs(value_N).max())
    if unit <= rounding:
        return NoFit("all values are equal")
    scaled_N = (value_N[order] - origin) / unit
    mean_K = np.bincount(index_N, weights=scaled_N) / count_K
    # Add the squares of the rounding errors, so that data without noise have no zero sum.
    within = float(((scaled_N - mean_K[index_N]) ** 2).sum()) + len(value_N) * (rounding / unit) ** 2
    runs = Runs(size_K, count_K, mean_K, within, len(value_N) - 2)
    exponents = _exponents(runs)
    if _is_misfit(runs, exponents):
        return NoFit("no power law fits the means of the sizes within the scatter of their seeds")
    law = _law(runs, exponents, origin, unit)
    change = law.doubling(law.sizes[1])
    # Every change has the sign of -b, so the intervals contain zero at all sizes or at none.
    if change.low <= 0 <= change.high:
        interval = f"{signed(change.low, 2)} to {signed(change.high, 2)}"
        return NoFit(f"the 90 % interval from {law.sizes[1]:,.0f} on, {interval}, contains zero")
    return law


def doubling_sentence(metric: str, law: PowerLaw | NoFit, size: int) -> str:
    """The expected effect on a metric (its name in words) of doubling `size` > 0 pairs, or why it is unknown."""
    if isinstance(law, NoFit):
        return f"These data cannot tell what doubling the pairs from {size:,} brings to the {metric}: {law.reason}."
    change = law.doubling(size)
    # Two digits, and up to four if the ends of a narrow interval would otherwise be printed alike.
    ratio = max(abs(change.low), abs(change.high)) / max(change.high - change.low, 1e-300)
    digits = int(np.clip(np.ceil(1 + np.log10(ratio)), 2, 4))
    expected, low, high = (signed(number, digits) for number in (change.expected, change.low, change.high))
    return (
        f"Doubling the pairs from {size:,} is expected to change the {metric} by {expected}, "
        f"between {low} and {high} (90 % interval)."
    )


def signed(number: float, digits: int) -> str:
    """A signed number with `digits` significant digits, or with all digits before the decimal point."""
    decimals = digits - 1 - math.floor(math.log10(abs(number) or 1.0))
    return f"{number:+,.{max(decimals, 0)}f}"


def _axis(size: Array, exponent: Array, ends: tuple[float, float]) -> Array:
    """n^-c, shifted and scaled to 1 at the smallest size and 0 at the largest."""
    return np.expm1(-exponent * np.log(size / ends[1])) / np.expm1(exponent * np.log(ends[1] / ends[0]))


def _lines(runs: Runs, exponent_C: Array, common: Array | float) -> Lines:
    """Generalised least squares; the common variance of a size is `common` times the variance of each run's own error."""
    along_CK = _axis(runs.size_K, exponent_C[:, None], (runs.size_K[0], runs.size_K[-1]))
    weight_CK = runs.count_K / (1 + np.broadcast_to(common, exponent_C.shape)[:, None] * runs.count_K)
    total_C = weight_CK.sum(axis=1)
    centre_C, level_C = (weight_CK * along_CK).sum(axis=1) / total_C, weight_CK @ runs.mean_K / total_C
    along_CK = along_CK - centre_C[:, None]
    square_C = (weight_CK * along_CK**2).sum(axis=1)
    slope_C = (weight_CK * along_CK) @ runs.mean_K / square_C
    rest_CK = runs.mean_K - level_C[:, None] - slope_C[:, None] * along_CK
    residual_C = (weight_CK * rest_CK**2).sum(axis=1) + runs.within
    return Lines(exponent_C, centre_C, level_C, slope_C, total_C, square_C, residual_C)


def _exponents(runs: Runs) -> Array:
    """Ascending exponents, evenly spaced over log c, and refined around the best one until its peak is resolved."""
    first, last = float(np.log(EXPONENTS[0])), float(np.log(EXPONENTS[1]))
    log_C, step = np.linspace(first, last, 61), (last - first) / 60
    while True:
        squares_C = _lines(runs, np.exp(log_C), 0.0).residual_C
        best = int(squares_C.argmin())
        neighbours = squares_C[max(best - 1, 0) : best + 2].max()
        # The log-likelihood ratio of the best exponent to its neighbours.
        if runs.df / 2 * np.log(neighbours / squares_C[best]) < 0.2 or step < 1e-14:
            return np.exp(log_C)
        near_C = np.clip(log_C[best] + step * np.linspace(-4, 4, 81), first, last)
        log_C, step = np.union1d(log_C, near_C), step / 10


def _is_misfit(runs: Runs, exponent_C: Array) -> bool:
    """The F test of lack of fit: the means' distance from the best curve against the squares within sizes."""
    from scipy import stats

    numerator, denominator = len(runs.size_K) - 3, int(runs.count_K.sum()) - len(runs.size_K)
    if not denominator:
        return False
    between = float(_lines(runs, exponent_C, 1.0).residual_C.min()) - runs.within
    ratio = between / numerator / (runs.within / denominator)
    return bool(stats.f.cdf(ratio, numerator, denominator) > 1 - MISFIT)


def _law(runs: Runs, exponents: Array, origin: float, unit: float) -> PowerLaw:
    # With one run for each size, all shares give the same lines.
    shares = np.array(SHARES) if runs.count_K.max() > 1 else np.zeros(1)
    exponent_C, share_C = (grid.ravel() for grid in np.meshgrid(exponents, shares))
    common_C = share_C / (1 - share_C)
    lines = _lines(runs, exponent_C, common_C)
    # Twice the negative logarithm of the likelihood after integration over level, slope and variance.
    cost_C = np.log1p(common_C[:, None] * runs.count_K).sum(axis=1)
    cost_C += np.log(lines.total_C * lines.square_C) + runs.df * np.log(lines.residual_C)
    # Trapezoidal rule over log c.
    halves = np.diff(np.log(exponents)) / 2
    widths_C = np.tile(np.append(halves, 0) + np.append(0, halves), len(shares))
    probability_C = widths_C * np.exp((cost_C.min() - cost_C) / 2)
    kept = probability_C > 1e-7 * probability_C.max()

    plain = _lines(runs, exponents, 0.0)
    c, centre, level, slope = (float(array[plain.residual_C.argmin()]) for array in plain[:4])
    ends = (float(runs.size_K[0]), float(runs.size_K[-1]))
    infinite = float(_axis(np.array(np.inf), np.array(c), ends))
    limit, scale = level + slope * (infinite - centre), -slope * infinite * ends[1] ** c
    lines = Lines(*(array[kept] for array in lines))
    probability_C = probability_C[kept] / probability_C[kept].sum()
    return PowerLaw(origin + unit * limit, unit * scale, c, ends, origin, unit, runs.df, lines, probability_C)
