"""How a metric depends on the number of pairs: a saturating power law, how sure it is, and the sentence that says so.

The curve is y(n) = a + b n^-c: the form of Hestness et al. 2017 (arXiv 1712.00409), and that of Rosenfeld et al. 2020
(arXiv 1909.12673) for one size of network. Given c it is a straight line, so that everything but c is integrated out
in closed form: the answer is a mixture of Student t distributions, and nothing is drawn by chance.

What is assumed:

- A run's error is Gaussian with one variance for all sizes. A share of it, unknown, is common to the runs of one size,
  which learn from the same pairs: without that, more seeds would make the curve look surer than they can.
- Before the data, every exponent is as likely on a logarithmic scale, every share, every pair of values at the smallest
  and the largest size, and every logarithm of the variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.record import Array

MIN_SIZES = 5
"""Distinct sizes without which nothing is fitted: three parameters, and two numbers to see their error by."""
EXPONENTS = (0.05, 2.0)
"""The exponents looked at: from almost a straight line over log n to a curve that is flat after a few doublings."""
LEVEL = 0.9
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the variance that the runs of one size have in common: midpoints of a uniform distribution."""
MISFIT = 0.01
"""Chance of calling a true power law a misfit, even if half the variance is common to the runs of a size."""

_TAILS = np.array([0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2])
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Change:
    """y(2n) - y(n): the median, and the interval that holds it with a probability of 90 %."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class CannotTell:
    """No law: why the data cannot tell, as the end of a sentence."""

    reason: str


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """What the data say of y(n) = a + b n^-c: C straight lines over n^-c, each with its probability.

    Attributes:
        limit: a of the least-squares curve, the value for endless pairs; in the metric's unit.
        scale: its b; positive where the metric falls.
        exponent: its c, within `EXPONENTS`.
        sizes: the smallest and the largest size.
        df: degrees of freedom of every line's Student t.
        exponent_C: each line's exponent.
        weight_C: its probability.
        centre_C: where on the line's axis (1 at the smallest size, 0 at the largest) level and slope are independent.
        level_C: the line there.
        slope_C: the line's slope: above zero where the metric falls.
        level_spread_C: scale of the level's Student t.
        slope_spread_C: that of the slope.
    """

    limit: float
    scale: float
    exponent: float
    sizes: tuple[float, float]
    df: int
    exponent_C: Array
    weight_C: Array
    centre_C: Array
    level_C: Array
    slope_C: Array
    level_spread_C: Array
    slope_spread_C: Array

    def at(self, size_N: Array) -> tuple[Array, Array, Array]:
        """The curve at sizes (N,), each > 0: its median (N,), and the low and high end (N,) of its 90 % interval.

        Of the curve, not of a single run, whose own error comes on top.
        """
        size_N1 = np.asarray(size_N, dtype=np.float64)[:, None]
        along_NC = _axis(size_N1, self.exponent_C, self.sizes) - self.centre_C
        middle, low, high = self._quantiles(
            self.level_C + self.slope_C * along_NC,
            np.hypot(self.level_spread_C, self.slope_spread_C * along_NC),
        )
        return middle, low, high

    def doubling(self, size: float) -> Change:
        """The change of the curve from `size` > 0 pairs to twice as many; its interval never holds zero."""
        smallest, largest = self.sizes
        fall_1C = (
            (size / largest) ** -self.exponent_C[None, :]
            * np.expm1(-self.exponent_C * np.log(2))
            / np.expm1(self.exponent_C * np.log(largest / smallest))
        )
        quantiles = self._quantiles(self.slope_C * fall_1C, self.slope_spread_C * np.abs(fall_1C))
        return Change(*(float(quantile) for quantile in quantiles[:, 0]))

    def _quantiles(self, centre_NC: Array, spread_NC: Array) -> Array:
        """Median, low and high end (3, N) of mixtures of Student t distributions, by bisection."""
        # With three degrees of freedom or more, no line's 5 % and 95 % lie further out than three spreads.
        low_QN = np.broadcast_to((centre_NC - 3 * spread_NC).min(axis=1), (3, len(centre_NC)))
        high_QN = np.broadcast_to((centre_NC + 3 * spread_NC).max(axis=1), (3, len(centre_NC)))
        table = _f_table(1, self.df)
        for _ in range(60):
            guess_QN = (low_QN + high_QN) / 2
            below_QN = _t_cdf((guess_QN[..., None] - centre_NC) / spread_NC, self.df, table) @ self.weight_C
            is_low_QN = below_QN < _TAILS[:, None]
            low_QN, high_QN = np.where(is_low_QN, guess_QN, low_QN), np.where(is_low_QN, high_QN, guess_QN)
        return (low_QN + high_QN) / 2


@dataclass(frozen=True, eq=False)
class _Runs:
    """The runs by size, K of them: how many of each, their mean, and the squares within; in units of their range."""

    size_K: Array
    count_K: Array
    mean_K: Array
    within: float
    rounding: float

    @property
    def ends(self) -> tuple[float, float]:
        return float(self.size_K[0]), float(self.size_K[-1])

    @property
    def num_runs(self) -> int:
        return int(self.count_K.sum())


@dataclass(frozen=True, eq=False)
class _Lines:
    """Weighted straight-line fits, C of them, with `residual_C` the weighted squares that each leaves between sizes."""

    weight_C: Array
    centre_C: Array
    level_C: Array
    slope_C: Array
    square_C: Array
    residual_C: Array


def fit_power_law(size_N: Array, value_N: Array) -> PowerLaw | CannotTell:
    """Fit y(n) = a + b n^-c, c > 0 and b of either sign, to a metric of N runs.

    Args:
        size_N: numbers of pairs, > 0; seeds repeat them.
        value_N: each run's metric, in any unit.

    Returns:
        The law, or why there is none: too few sizes, values that are not finite or all equal, sizes whose means no
        power law meets as closely as seeds agree, or a sign of the change that is not sure to 95 %.

    Raises:
        ValueError: not two arrays (N,) of one length, or a size that is not a positive number.
    """
    size_N, value_N = np.asarray(size_N, dtype=np.float64), np.asarray(value_N, dtype=np.float64)
    if size_N.ndim != 1 or size_N.shape != value_N.shape:
        raise ValueError(
            f"a fit needs as many sizes as values, got shapes {size_N.shape} and {value_N.shape}"
        )
    if not (np.isfinite(size_N) & (size_N > 0)).all():
        raise ValueError("sizes must be positive numbers of pairs")
    if not np.isfinite(value_N).all():
        return CannotTell(
            f"{np.count_nonzero(~np.isfinite(value_N))} of {len(value_N)} values are not finite"
        )
    num_sizes = len(np.unique(size_N))
    if num_sizes < MIN_SIZES:
        return CannotTell(f"a curve needs at least {MIN_SIZES} sizes, and there are {num_sizes}")
    # Sums depend on the order of their terms in the last bit.
    order = np.lexsort((value_N, size_N))
    size_N, value_N = size_N[order], value_N[order]
    origin, unit = float(value_N.min()), float(np.ptp(value_N))
    rounding = 4 * np.finfo(np.float64).eps * float(np.abs(value_N).max())
    if unit <= rounding:
        return CannotTell("all values are equal")
    runs = _runs(size_N, (value_N - origin) / unit, rounding / unit)
    exponents = _exponents(runs)
    if _misfit(runs, exponents) < MISFIT:
        return CannotTell("no power law comes nearly as close to the sizes' means as seeds of one size agree")
    law = _posterior(runs, exponents, origin, unit)
    falls = float(_t_cdf(law.slope_C / law.slope_spread_C, law.df, _f_table(1, law.df)) @ law.weight_C)
    if (1 - LEVEL) / 2 < falls < (1 + LEVEL) / 2:
        change = law.doubling(law.sizes[1])
        low, high = _digits(change.low, 2), _digits(change.high, 2)
        return CannotTell(f"the 90 % interval from {law.sizes[1]:,.0f} on, {low} to {high}, contains zero")
    return law


def doubling_sentence(metric: str, law: PowerLaw | CannotTell, size: int) -> str:
    """What twice as many pairs as `size` > 0 would do to a metric (its name in words), or why nobody can tell."""
    if isinstance(law, CannotTell):
        asked = f"What doubling the pairs from {size:,} would change in the {metric}"
        return f"{asked}, these data cannot tell: {law.reason}."
    change = law.doubling(size)
    # Two digits, and up to four where the interval is so narrow that its ends would look alike.
    ratio = max(abs(change.low), abs(change.high)) / max(change.high - change.low, 1e-300)
    digits = int(np.clip(np.ceil(1 + np.log10(ratio)), 2, 4))
    expected, low, high = (_digits(number, digits) for number in (change.expected, change.low, change.high))
    return (
        f"Doubling the pairs from {size:,} is expected to change the {metric} by {expected}, "
        f"between {low} and {high} (90 % interval)."
    )


def _runs(size_N: Array, value_N: Array, rounding: float) -> _Runs:
    size_K, index_N, count_K = np.unique(size_N, return_inverse=True, return_counts=True)
    mean_K = np.bincount(index_N, weights=value_N) / count_K
    return _Runs(size_K, count_K, mean_K, float(((value_N - mean_K[index_N]) ** 2).sum()), rounding)


def _axis(size: Array, exponent_C: Array, ends: tuple[float, float]) -> Array:
    """n^-c, moved and stretched to be 1 at the smallest size and 0 at the largest."""
    smallest, largest = ends
    return np.expm1(-exponent_C * np.log(size / largest)) / np.expm1(exponent_C * np.log(largest / smallest))


def _lines(runs: _Runs, exponent_C: Array, common_C: Array) -> _Lines:
    """Generalised least squares where runs of a size have in common `common_C` times the variance of their own."""
    weight_CK = runs.count_K / (1 + common_C[:, None] * runs.count_K)
    along_CK = _axis(runs.size_K, exponent_C[:, None], runs.ends)
    weight_C = weight_CK.sum(axis=1)
    centre_C = (weight_CK * along_CK).sum(axis=1) / weight_C
    level_C = (weight_CK * runs.mean_K).sum(axis=1) / weight_C
    along_CK = along_CK - centre_C[:, None]
    square_C = (weight_CK * along_CK**2).sum(axis=1)
    slope_C = (weight_CK * along_CK * runs.mean_K).sum(axis=1) / square_C
    residual_CK = runs.mean_K - level_C[:, None] - slope_C[:, None] * along_CK
    # Data without noise still have rounding errors: no sum of squares is smaller than theirs, nor ever zero.
    residual_C = (weight_CK * (residual_CK**2 + runs.rounding**2)).sum(axis=1)
    return _Lines(weight_C, centre_C, level_C, slope_C, square_C, residual_C)


def _exponents(runs: _Runs) -> Array:
    """Ascending exponents, even over log c, and the denser the nearer to the best one, until its peak is resolved."""
    least, most = map(float, np.log(EXPONENTS))
    log_C = np.linspace(least, most, 121)
    step = log_C[1] - log_C[0]
    while True:
        squares_C = runs.within + _lines(runs, np.exp(log_C), np.zeros(len(log_C))).residual_C
        best = int(squares_C.argmin())
        beside = squares_C[max(best - 1, 0) : best + 2].max()
        # What the likelihood loses from the best exponent to its neighbours.
        if (runs.num_runs - 2) / 2 * np.log(beside / squares_C[best]) < 0.05 or step < 1e-14:
            return np.exp(log_C)
        near_C = np.clip(log_C[best] + step * np.linspace(-4, 4, 81), least, most)
        log_C, step = np.union1d(log_C, near_C), step / 10


def _misfit(runs: _Runs, exponent_C: Array) -> float:
    """Chance of means as far from the best curve, if runs of a size share half their variance; 1 without seeds."""
    num_sizes = len(runs.size_K)
    df = runs.num_runs - num_sizes
    if not df:
        return 1.0
    between = _lines(runs, exponent_C, np.ones(len(exponent_C))).residual_C.min() / (num_sizes - 3)
    within = runs.within / df + runs.rounding**2
    angle, chance = _f_table(num_sizes - 3, df)
    return float(1 - np.interp(np.arctan(np.sqrt(between / within * (num_sizes - 3) / df)), angle, chance))


def _posterior(runs: _Runs, exponents: Array, origin: float, unit: float) -> PowerLaw:
    # With one run a size no data tell the shares apart: the weights below would all be equal, and the lines too.
    shares = np.array(SHARES) if runs.count_K.max() > 1 else np.zeros(1)
    exponent_C, share_C = (grid.ravel() for grid in np.meshgrid(exponents, shares))
    common_C = share_C / (1 - share_C)
    lines = _lines(runs, exponent_C, common_C)
    df = runs.num_runs - 2
    squares_C = runs.within + lines.residual_C
    log_weight_C = -0.5 * (
        np.log1p(common_C[:, None] * runs.count_K).sum(axis=1)
        + np.log(lines.weight_C * lines.square_C)
        + df * np.log(squares_C)
    )
    # The trapezoidal rule over log c.
    step = np.diff(np.log(exponents)) / 2
    weight_C = np.exp(log_weight_C - log_weight_C.max()) * np.tile(
        np.append(step, 0) + np.append(0, step), len(shares)
    )
    kept = weight_C > _NEGLIGIBLE * weight_C.max()
    variance_C = squares_C / df
    best = _lines(runs, exponents, np.zeros(len(exponents)))
    index = int(best.residual_C.argmin())
    exponent = float(exponents[index])
    smallest, largest = runs.ends
    slope = unit * float(best.slope_C[index])
    return PowerLaw(
        limit=origin
        + unit * float(best.level_C[index] - best.slope_C[index] * best.centre_C[index])
        - slope / float(np.expm1(exponent * np.log(largest / smallest))),
        scale=slope * largest**exponent / float(np.expm1(exponent * np.log(largest / smallest))),
        exponent=exponent,
        sizes=runs.ends,
        df=df,
        exponent_C=exponent_C[kept],
        weight_C=weight_C[kept] / weight_C[kept].sum(),
        centre_C=lines.centre_C[kept],
        level_C=origin + unit * lines.level_C[kept],
        slope_C=unit * lines.slope_C[kept],
        level_spread_C=unit * np.sqrt(variance_C / lines.weight_C)[kept],
        slope_spread_C=unit * np.sqrt(variance_C / lines.square_C)[kept],
    )


def _f_table(numerator: int, denominator: int) -> tuple[Array, Array]:
    """The F distribution's CDF over arctan of the root of F numerator / denominator, where its density is smooth."""
    angle = np.linspace(0, np.pi / 2, 4097)
    density = np.sin(angle) ** (numerator - 1) * np.cos(angle) ** (denominator - 1)
    chance = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angle, chance / chance[-1]


def _t_cdf(t: Array, df: int, table: tuple[Array, Array]) -> Array:
    """Student's t: its square is F with one degree of freedom above and `df` below (`table`)."""
    return 0.5 + 0.5 * np.sign(t) * np.interp(np.arctan(np.abs(t) / np.sqrt(df)), *table)


def _digits(number: float, digits: int) -> str:
    """A signed number in so many significant digits, without an exponent."""
    return np.format_float_positional(
        number, precision=digits, unique=False, fractional=False, sign=True, trim="k"
    ).rstrip(".")
