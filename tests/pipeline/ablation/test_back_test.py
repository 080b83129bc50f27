"""The check of a power law at the largest size: outcomes, the exact sentences, and how often a true law misses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.ablation.back_test import back_test, sentence
from pipeline.ablation.power_law import NoFit, PowerLaw, fit_power_law
from shards.format.spec import Array

SIX = 1250 * 2 ** np.arange(6)
FOURFOLD = 100 * 4 ** np.arange(6)
"""1 - 5 n^-1/2 is 0.5, 0.75, 0.875, 0.9375, 0.96875 and 0.984375 at these sizes."""


def rising(sizes: Array) -> Array:
    return 1 - 5 * np.asarray(sizes, dtype=np.float64) ** -0.5


@pytest.mark.quick
@pytest.mark.parametrize("num_seeds", [1, 2])
@pytest.mark.parametrize(("limit", "scale", "exponent"), [(0.5, 2.0, 0.03), (0.8, -5.0, 0.5), (3.0, -1e8, 2.8)])
def test_data_of_an_exact_law_pass(limit: float, scale: float, exponent: float, num_seeds: int) -> None:
    sizes = np.repeat(SIX, num_seeds)
    values = limit + scale * sizes.astype(np.float64) ** -exponent
    test = back_test(sizes, values)
    assert isinstance(test.law, PowerLaw)
    assert test.missed is None
    assert test.predicted == pytest.approx([values[-1]] * 3, rel=1e-7)


@pytest.mark.quick
def test_a_passed_check_is_a_clause_of_the_promise() -> None:
    # 5 (102,400^-1/2 - 204,800^-1/2) = 0.015625 - 0.011049
    assert sentence("recall", back_test(FOURFOLD, rising(FOURFOLD))) == (
        "Doubling the pairs from 102,400 is expected to change the recall by +0.004576, between +0.004576 and +0.004576 "
        "(90 % interval); checked: the smaller sizes predict 0.984375 at 102,400 (0.984375 to 0.984375), "
        "and its runs have 0.984375. The last step, from 25,600 to 4 times as many, brought +0.016."
    )


@pytest.mark.quick
def test_a_curve_that_saturates_suddenly_misses_and_promises_nothing() -> None:
    values = rising(FOURFOLD)
    values[-1] = 0.971875
    test = back_test(FOURFOLD, values)
    assert isinstance(fit_power_law(FOURFOLD, values), PowerLaw), "a law that must be withdrawn"
    assert isinstance(test.law, NoFit)
    assert test.missed is not None
    assert test.missed.sizes == (100, 25_600)
    assert sentence("recall", test) == (
        "These data cannot tell what doubling the pairs from 102,400 brings to the recall: the smaller sizes "
        "predict 0.984375 at 102,400 (0.984375 to 0.984375), and its runs have 0.971875, 0.012500 below the interval. "
        "The last step, from 25,600 to 4 times as many, brought +0.0031."
    )


@pytest.mark.quick
def test_the_token_match_of_the_digits_misses() -> None:
    """The twelve cells of docs/how-to/ablation.md; without the largest size, their law promised +0.030."""
    cells = {1250: (0.1919375, 0.1968125), 2500: (0.2499375, 0.2448125), 5000: (0.3195625, 0.32525)}
    cells |= {10_000: (0.3639375, 0.37075), 20_000: (0.385125, 0.3820625), 40_000: (0.3865, 0.385875)}
    sizes, values = np.repeat(SIX, 2), np.array([value for pair in cells.values() for value in pair])
    assert "by +0.030, between +0.015 and +0.048" in sentence("token match", back_test(sizes[:-2], values[:-2]))
    assert sentence("token match", back_test(sizes, values)) == (
        "These data cannot tell what doubling the pairs from 40,000 brings to the token match: the smaller sizes "
        "predict 0.4230 at 40,000 (0.3929 to 0.4574), and its runs have 0.3862, 0.0067 below the interval. "
        "The last doubling, from 20,000, brought +0.0026."
    )


@pytest.mark.quick
def test_equal_means_are_no_change() -> None:
    values = np.array([0.81, 0.6, 0.72, 0.48, 0.3, 0.3])
    assert sentence("recall", back_test(SIX, values)).endswith("The last doubling, from 20,000, brought no change.")


@pytest.mark.quick
def test_five_sizes_are_not_checked_and_say_what_would() -> None:
    test = back_test(FOURFOLD[:5], rising(FOURFOLD[:5]))
    assert isinstance(test.law, PowerLaw)
    assert test.predicted is None
    text = sentence("recall", test)
    assert "is expected to change the recall by +0.009153" in text
    assert "; not checked: a sixth size would check it. The last step, from 6,400 to 4 times as many, brought" in text


@pytest.mark.quick
def test_a_law_that_the_smaller_sizes_do_not_have_is_withdrawn() -> None:
    values = np.array([1.03, 0.76, 0.61, 0.25, 0.65, 0.49])
    assert isinstance(fit_power_law(SIX, values), PowerLaw)
    test = back_test(SIX, values)
    assert test.missed is None
    assert sentence("recall", test) == (
        "These data cannot tell what doubling the pairs from 40,000 brings to the recall: a law fits, but the "
        "smaller sizes alone give none that could check it (the 90 % interval from 20,000 on, -0.20 to +0.0025, contains "
        "zero). The last doubling, from 20,000, brought -0.16."
    )


@pytest.mark.quick
def test_the_reason_for_no_law_stays_where_the_smaller_sizes_predict_the_largest() -> None:
    values = np.array([0.81, 0.6, 0.72, 0.48, 0.23, 0.55])
    fitted, test = fit_power_law(SIX, values), back_test(SIX, values)
    assert isinstance(fitted, NoFit)
    assert test.law == fitted
    assert sentence("recall", test).endswith("contains zero. The last doubling, from 20,000, brought +0.32.")


@pytest.mark.quick
def test_one_size_has_no_last_step() -> None:
    assert sentence("recall", back_test(SIX[:1], np.array([0.5]))) == (
        "These data cannot tell what doubling the pairs from 1,250 brings to the recall: "
        "a curve needs at least 5 sizes, and there are 1."
    )


@pytest.mark.parametrize(("num_sizes", "rate"), [(6, 0.13), (10, 0.28)])
def test_a_true_law_misses_more_often_with_more_sizes(num_sizes: int, rate: float) -> None:
    """Half of the variance is common to the two runs of a size. The rates are those of docs/how-to/ablation.md."""
    sizes, misses = np.repeat(1250.0 * 2 ** np.arange(num_sizes), 2), 0
    for key in range(100):
        draw = np.random.Generator(np.random.Philox(key))
        errors = draw.standard_normal(2 * num_sizes) + np.repeat(draw.standard_normal(num_sizes), 2)
        misses += back_test(sizes, 50 * sizes**-0.5 + 0.01 * errors).missed is not None
    print(f"{misses} of 100 laws miss")
    low, high = stats.binom.interval(0.99, 100, rate)
    assert low <= misses <= high


@pytest.mark.parametrize("place", [0, 4, 5])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_the_reason(place: int, value: float) -> None:
    values = 1 + np.asarray(SIX, dtype=np.float64) ** -0.5
    values[place] = value
    text = sentence("recall", back_test(SIX, values))
    assert "1 of 6 values are not finite" in text
    assert ("The last doubling" in text) == (place == 0)
