"""How a metric depends on the number of pairs: a saturating power law, how sure it is, and the sentence that says so.

The curve is y(n) = a + b n^-c: the form of Hestness et al. 2017 (arXiv 1712.00409), and that of Rosenfeld et al. 2020
(arXiv 1909.12673) for one size of network. Given c it is a straight line over n^-c, so that all but c is integrated
in closed form: the answer is a mixture of Student t distributions, and nothing is drawn by chance.

What is assumed:

- A run's error is Gaussian, with one variance for all sizes. A share of it, unknown, is common to the runs of one size,
  which learn from the same pairs: without that, more seeds would make the curve look surer than they can.
- Before the data, equally likely are all exponents on a logarithmic scale, all shares, all values at the smallest and
  at the largest size, and all logarithms of the variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from shards.format.spec import Array

MIN_SIZES = 5
"""Distinct sizes without which nothing is fitted: three parameters, and two numbers to see their error by."""
EXPONENTS = (0.02, 3.0)
"""The exponents looked at: from almost a straight line over log n to a curve that is flat after one doubling."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the variance that the runs of one size have in common: midpoints of a uniform distribution."""
LEVEL = 0.9
MISFIT = 0.01
"""About the chance of calling a true power law a misfit where half of the variance is common to the runs of a size."""


@dataclass(frozen=True)
class Change:
    """y(2n) - y(n): its median, and the interval that holds it with a probability of 90 %."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class NoFit:
    """No law: why the data cannot tell, as the end of a sentence."""

    reason: str


class Runs(NamedTuple):
    """Runs of K sizes, ascending: how many, their mean, the squares within sizes in all, and N - 2."""

    size_K: Array
    count_K: Array
    mean_K: Array
    within: float
    df: int


class Lines(NamedTuple):
    """C weighted straight lines over `_axis`: sums of weights, of squares along the axis, and of those that are left."""

    exponent_C: Array
    centre_C: Array  # Where on the axis level and slope are independent.
    level_C: Array
    slope_C: Array
    total_C: Array
    square_C: Array
    residual_C: Array


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """What the data say of y(n) = a + b n^-c: the least-squares curve, and C lines with their probabilities.

    Attributes:
        limit: a of the least-squares curve, the value for endless pairs; in the metric's unit.
        scale: its b; positive where the metric falls.
        exponent: its c, within `EXPONENTS`.
        sizes: the smallest and the largest size.
        origin: the value that the lines take for zero.
        unit: how much of the metric they take for one.
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
        """The curve at sizes (N,), each > 0: its median (N,), and the low and high end (N,) of its 90 % interval.

        Of the curve: the error of a single run comes on top.
        """
        lines = self.lines
        sizes_N1 = np.asarray(size_N, dtype=np.float64)[:, None]
        along_NC = _axis(sizes_N1, lines.exponent_C, self.sizes) - lines.centre_C
        variance_NC = 1 / lines.total_C + along_NC**2 / lines.square_C
        quantiles_3N = self._quantiles(lines.level_C + lines.slope_C * along_NC, variance_NC)
        middle, low, high = self.origin + self.unit * quantiles_3N
        return middle, low, high

    def doubling(self, size: float) -> Change:
        """The change of the curve from `size` > 0 pairs to twice as many; never zero within its interval."""
        smallest, largest = self.sizes
        c = self.lines.exponent_C
        # A difference along the axis, in one piece: no digits are lost where the curve is flat.
        step_C = (size / largest) ** -c * np.expm1(-c * np.log(2)) / np.expm1(c * np.log(largest / smallest))
        mean_1C, variance_1C = (self.lines.slope_C * step_C)[None], (step_C**2 / self.lines.square_C)[None]
        return Change(*(self.unit * self._quantiles(mean_1C, variance_1C)[:, 0]).tolist())

    def _quantiles(self, mean_NC: Array, variance_NC: Array) -> Array:
        """Median, low and high end (3, N) of mixtures over the lines, by bisection."""
        spread_NC = np.sqrt(variance_NC * self.lines.residual_C / self.df)
        tail_31 = np.array([[0.5], [(1 - LEVEL) / 2], [(1 + LEVEL) / 2]])
        # With three degrees of freedom or more, the 5 % and 95 % of each line lie within three spreads.
        low_3N = np.broadcast_to((mean_NC - 3 * spread_NC).min(axis=1), (3, len(mean_NC)))
        high_3N = np.broadcast_to((mean_NC + 3 * spread_NC).max(axis=1), (3, len(mean_NC)))
        for _ in range(200):
            guess_3N = (low_3N + high_3N) / 2
            # Relative to the quantile: far from the data it may be many digits smaller than the widest line's spread.
            if (high_3N - low_3N <= 1e-10 * np.abs(guess_3N)).all():
                break
            below_3NC = _t_cdf((guess_3N[..., None] - mean_NC) / spread_NC, self.df)
            is_low_3N = below_3NC @ self.probability_C < tail_31
            low_3N, high_3N = np.where(is_low_3N, guess_3N, low_3N), np.where(is_low_3N, high_3N, guess_3N)
        return guess_3N


def fit_power_law(size_N: Array, value_N: Array) -> PowerLaw | NoFit:
    """Fit y(n) = a + b n^-c, c > 0 and b of either sign, to a metric of N runs.

    Args:
        size_N: numbers of pairs, > 0; seeds repeat them.
        value_N: each run's metric, in any unit.

    Returns:
        The law, or why there is none: too few sizes, values that are not finite or all equal, means that no power law
        comes as close to as seeds agree, or a change that may be up or down.

    Raises:
        ValueError: not two arrays (N,) of one length, or a size that is not a positive number.
    """
    size_N, value_N = np.asarray(size_N, dtype=np.float64), np.asarray(value_N, dtype=np.float64)
    if size_N.ndim != 1 or size_N.shape != value_N.shape:
        raise ValueError(f"sizes and values must be as many, got shapes {size_N.shape} and {value_N.shape}")
    if not (np.isfinite(size_N) & (size_N > 0)).all():
        raise ValueError("sizes must be positive numbers of pairs")
    num_bad = np.count_nonzero(~np.isfinite(value_N))
    if num_bad:
        return NoFit(f"{num_bad} of {len(value_N)} values are not finite")
    # Sums depend on the order of their terms in the last bit.
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
    # Data without noise still have rounding errors: no squares are less than theirs, so that none are zero.
    within = float(((scaled_N - mean_K[index_N]) ** 2).sum()) + len(value_N) * (rounding / unit) ** 2
    runs = Runs(size_K, count_K, mean_K, within, len(value_N) - 2)
    exponents = _exponents(runs)
    if _is_misfit(runs, exponents):
        return NoFit("no power law comes nearly as close to the sizes' means as seeds of one size agree")
    law = _law(runs, exponents, origin, unit)
    change = law.doubling(law.sizes[1])
    # Every change has the sign of -b: the intervals hold zero from any size on, or from none.
    if change.low <= 0 <= change.high:
        interval = f"{_digits(change.low, 2)} to {_digits(change.high, 2)}"
        return NoFit(f"the 90 % interval from {law.sizes[1]:,.0f} on, {interval}, contains zero")
    return law


def doubling_sentence(metric: str, law: PowerLaw | NoFit, size: int) -> str:
    """What twice as many pairs as `size` > 0 would do to a metric (its name in words), or why nobody can tell."""
    if isinstance(law, NoFit):
        unknown = f"What doubling the pairs from {size:,} would change in the {metric}"
        return f"{unknown}, these data cannot tell: {law.reason}."
    change = law.doubling(size)
    # Two digits, and up to four where the interval is so narrow that its ends would look alike.
    ratio = max(abs(change.low), abs(change.high)) / max(change.high - change.low, 1e-300)
    digits = int(np.clip(np.ceil(1 + np.log10(ratio)), 2, 4))
    expected, low, high = (_digits(number, digits) for number in (change.expected, change.low, change.high))
    return (
        f"Doubling the pairs from {size:,} is expected to change the {metric} by {expected}, "
        f"between {low} and {high} (90 % interval)."
    )


def _axis(size: Array, exponent: Array, ends: tuple[float, float]) -> Array:
    """n^-c, moved and stretched to be 1 at the smallest size and 0 at the largest."""
    return np.expm1(-exponent * np.log(size / ends[1])) / np.expm1(exponent * np.log(ends[1] / ends[0]))


def _lines(runs: Runs, exponent_C: Array, common: Array | float) -> Lines:
    """Generalised least squares; runs of a size have in common `common` times the variance of each one's own."""
    along_CK = _axis(runs.size_K, exponent_C[:, None], (runs.size_K[0], runs.size_K[-1]))
    weight_CK = runs.count_K / (1 + np.broadcast_to(common, exponent_C.shape)[:, None] * runs.count_K)
    total_C = weight_CK.sum(axis=1)
    centre_C, level_C = (weight_CK * along_CK).sum(axis=1) / total_C, weight_CK @ runs.mean_K / total_C
    along_CK = along_CK - centre_C[:, None]
    square_C = (weight_CK * along_CK**2).sum(axis=1)
    slope_C = (weight_CK * along_CK) @ runs.mean_K / square_C
    left_CK = runs.mean_K - level_C[:, None] - slope_C[:, None] * along_CK
    residual_C = (weight_CK * left_CK**2).sum(axis=1) + runs.within
    return Lines(exponent_C, centre_C, level_C, slope_C, total_C, square_C, residual_C)


def _exponents(runs: Runs) -> Array:
    """Ascending exponents, even over log c, but denser and denser around the best until its peak is resolved."""
    first, last = float(np.log(EXPONENTS[0])), float(np.log(EXPONENTS[1]))
    log_C, step = np.linspace(first, last, 61), (last - first) / 60
    while True:
        squares_C = _lines(runs, np.exp(log_C), 0.0).residual_C
        best = int(squares_C.argmin())
        beside = squares_C[max(best - 1, 0) : best + 2].max()
        # How much less likely the neighbours are.
        if runs.df / 2 * np.log(beside / squares_C[best]) < 0.2 or step < 1e-14:
            return np.exp(log_C)
        near_C = np.clip(log_C[best] + step * np.linspace(-4, 4, 81), first, last)
        log_C, step = np.union1d(log_C, near_C), step / 10


def _is_misfit(runs: Runs, exponent_C: Array) -> bool:
    """Whether the means lie too far from the best curve, by the F test of lack of fit against the runs within sizes."""
    df = int(runs.count_K.sum()) - len(runs.size_K)
    if not df:
        return False
    between = float(_lines(runs, exponent_C, 1.0).residual_C.min()) - runs.within
    angle, chance = _f_table(len(runs.size_K) - 3, df)
    return bool(np.interp(np.arctan(np.sqrt(between / runs.within)), angle, chance) > 1 - MISFIT)


def _law(runs: Runs, exponents: Array, origin: float, unit: float) -> PowerLaw:
    # With one run a size no data tell the shares apart, and all give the same lines.
    shares = np.array(SHARES) if runs.count_K.max() > 1 else np.zeros(1)
    exponent_C, share_C = (grid.ravel() for grid in np.meshgrid(exponents, shares))
    common_C = share_C / (1 - share_C)
    lines = _lines(runs, exponent_C, common_C)
    # Twice the negative logarithm of what is left of the likelihood once level, slope and variance are integrated out.
    cost_C = np.log1p(common_C[:, None] * runs.count_K).sum(axis=1)
    cost_C += np.log(lines.total_C * lines.square_C) + runs.df * np.log(lines.residual_C)
    # The trapezoidal rule over log c.
    halves = np.diff(np.log(exponents)) / 2
    widths_C = np.tile(np.append(halves, 0) + np.append(0, halves), len(shares))
    probability_C = widths_C * np.exp((cost_C.min() - cost_C) / 2)
    kept = probability_C > 1e-7 * probability_C.max()

    plain = _lines(runs, exponents, 0.0)
    c, centre, level, slope = (float(array[plain.residual_C.argmin()]) for array in plain[:4])
    ends = (float(runs.size_K[0]), float(runs.size_K[-1]))
    endless = float(_axis(np.array(np.inf), np.array(c), ends))
    limit, scale = level + slope * (endless - centre), -slope * endless * ends[1] ** c
    lines = Lines(*(array[kept] for array in lines))
    probability_C = probability_C[kept] / probability_C[kept].sum()
    return PowerLaw(origin + unit * limit, unit * scale, c, ends, origin, unit, runs.df, lines, probability_C)


# Asked for again at every step of a bisection.
@lru_cache(maxsize=4)
def _f_table(numerator: int, denominator: int) -> tuple[Array, Array]:
    """CDF of the F distribution over arctan sqrt(F numerator / denominator), in which its density is smooth."""
    angle = np.linspace(0, np.pi / 2, 4097)
    density = np.sin(angle) ** (numerator - 1) * np.cos(angle) ** (denominator - 1)
    chance = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angle, chance / chance[-1]


def _t_cdf(t: Array, df: int) -> Array:
    """CDF of Student's t, whose square is F with one degree of freedom over `df`."""
    return 0.5 + 0.5 * np.sign(t) * np.interp(np.arctan(np.abs(t) / np.sqrt(df)), *_f_table(1, df))


def _digits(number: float, digits: int) -> str:
    """A signed number with so many significant digits, or all that stand before its point."""
    decimals = digits - 1 - math.floor(math.log10(abs(number) or 1.0))
    return f"{number:+,.{max(decimals, 0)}f}"
