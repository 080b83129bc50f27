"""Checks a power law by its own data: fitted without the largest size, it must predict that size.

A law that missed, or that cannot be fitted without the largest size, is withdrawn: a reason takes its place. The check is
strict: the interval is that of the curve, and the mean of the largest size scatters besides. So a true law misses more
often than once in ten times (in simulations 13 of 100 with six sizes, 28 of 100 with ten), and is withdrawn without need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.ablation.power_law import MIN_SIZES, NoFit, PowerLaw, doubling_sentence, fit_power_law, signed
from shards.format.spec import Array

ROUNDING = 1e-6
"""Distance from the interval, as a share of the range of the values, that counts as inside.

Data without noise have an interval as narrow as rounding errors.
"""


@dataclass(frozen=True, eq=False)
class BackTest:
    """The law of a series after its check at the largest size.

    Attributes:
        law: the law of all sizes; why there is none, or why it was withdrawn.
        missed: the law fitted without the largest size, if the mean of that size is outside its interval.
        predicted: median, low end and high end of that law's interval at the largest size; None if nothing was checked.
        sizes: the two largest sizes, ascending; a single one if there is no other.
        means: the means of their runs.
    """

    law: PowerLaw | NoFit
    missed: PowerLaw | None
    predicted: tuple[float, float, float] | None
    sizes: tuple[int, ...]
    means: tuple[float, ...]


def back_test(size_N: Array, value_N: Array) -> BackTest:
    """Fit a law to a metric (N,) of N >= 1 runs with numbers of pairs (N,), and check it with six sizes or more.

    Raises:
        ValueError: as `fit_power_law`.
    """
    law = fit_power_law(size_N, value_N)
    size_K = np.unique(size_N)
    sizes = tuple(int(size) for size in size_K[-2:])
    means = tuple(float(value_N[size_N == size].mean()) for size in size_K[-2:])
    if len(size_K) <= MIN_SIZES or not np.isfinite(value_N).all():
        return BackTest(law, None, None, sizes, means)
    is_earlier_N = size_N < size_K[-1]
    earlier = fit_power_law(size_N[is_earlier_N], value_N[is_earlier_N])
    if isinstance(earlier, NoFit):
        if isinstance(law, PowerLaw):
            law = NoFit(f"a law fits, but the smaller sizes alone give none that could check it ({earlier.reason})")
        return BackTest(law, None, None, sizes, means)
    middle, low, high = (float(values[0]) for values in earlier.at(size_K[-1:]))
    rounding = ROUNDING * float(np.ptp(value_N))
    if low - rounding <= means[-1] <= high + rounding:
        return BackTest(law, None, (middle, low, high), sizes, means)
    reason = _comparison(sizes[-1], (middle, low, high), means[-1], is_missed=True)
    return BackTest(NoFit(reason), earlier, (middle, low, high), sizes, means)


def sentence(metric: str, test: BackTest) -> str:
    """The effect of doubling the pairs on a metric (its name in words) and how it was checked, or why it is unknown.

    The last clause says what the step between the two largest sizes brought.
    """
    text = doubling_sentence(metric, test.law, test.sizes[-1])
    if isinstance(test.law, PowerLaw):
        # An unchecked law has the fewest sizes that give a law, which are five.
        check = "not checked: a sixth size would check it"
        if test.predicted:
            check = f"checked: {_comparison(test.sizes[-1], test.predicted, test.means[-1], is_missed=False)}"
        text = f"{text.removesuffix('.')}; {check}."
    if len(test.sizes) < 2:
        return text
    before, last = test.sizes
    times = f" to {last / before:.3g} times as many" if last != 2 * before else ""
    if not all(map(math.isfinite, test.means)):
        return text
    change = "no change" if math.isclose(*test.means) else signed(test.means[1] - test.means[0], 2)
    return f"{text} The last {'step' if times else 'doubling'}, from {before:,}{times}, brought {change}."


def _comparison(size: int, predicted: tuple[float, float, float], measured: float, is_missed: bool) -> str:
    """What the law of the smaller sizes predicts at the largest size, what its runs have, and by how much it missed."""
    middle, low, high = predicted
    # Three digits of the interval, and enough to see on which side of its ends the mean is; in all at most six digits.
    finest = min((high - low) / 100, abs(measured - low), abs(measured - high)) or math.ulp(0.0)
    most = 5 - math.floor(math.log10(max(abs(low), abs(high), abs(measured)) or 1.0))
    decimals = max(0, min(-math.floor(math.log10(finest)), most))

    def text(number: float) -> str:
        return f"{number:,.{decimals}f}"

    distance = f"{text(measured - high)} above" if measured > high else f"{text(low - measured)} below"
    miss = f", {distance} the interval" if is_missed else ""
    return (
        f"the smaller sizes predict {text(middle)} at {size:,} ({text(low)} to {text(high)}), "
        f"and its runs have {text(measured)}{miss}"
    )
