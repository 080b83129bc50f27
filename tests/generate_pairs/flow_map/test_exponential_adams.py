"""Coefficients of the exponential Adams method: exact for polynomials, and of third order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from generate_pairs.flow_map.exponential_adams import adams_coefficients, default_num_steps

pytestmark = pytest.mark.quick


def test_default_num_steps():
    assert [default_num_steps(dim) for dim in (1, 3, 4, 6, 8, 32)] == [64, 64, 64, 32, 32, 32]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 16, 64])
def test_weights_sum_to_the_length_of_the_step(num_steps):
    predictor, corrector = adams_coefficients(num_steps)
    tau = np.arange(num_steps + 1) / (num_steps + 1)
    u = tau / (1 - tau)
    np.testing.assert_allclose(predictor.sum(axis=1), np.diff(u), rtol=1e-12)
    np.testing.assert_allclose(corrector.sum(axis=1), np.diff(u), rtol=1e-12)
    assert predictor[0, 0] == pytest.approx(1 / num_steps, rel=1e-13)
    assert u[-1] == pytest.approx(num_steps)


def test_weights_are_exact_for_quadratics_and_cubics():
    num_steps = 12
    tau = np.arange(num_steps + 1) / (num_steps + 1)

    def integral(power, a, b):  # of tau^power / (1 - tau)^2
        antiderivative = {
            0: lambda x: 1 / (1 - x),
            1: lambda x: 1 / (1 - x) + math.log(1 - x),
            2: lambda x: x + 2 * math.log(1 - x) + 1 / (1 - x),
            3: lambda x: x**2 / 2 + 2 * x + 3 * math.log(1 - x) + 1 / (1 - x),
        }[power]
        return antiderivative(b) - antiderivative(a)

    predictor, corrector = adams_coefficients(num_steps)
    for i in range(2, num_steps):
        for power in range(3):
            nodes = tau[[i, i - 1, i - 2]] ** power
            assert predictor[i] @ nodes == pytest.approx(integral(power, tau[i], tau[i + 1]), rel=1e-11)
        for power in range(4):
            nodes = tau[[i + 1, i, i - 1, i - 2]] ** power
            assert corrector[i] @ nodes == pytest.approx(integral(power, tau[i], tau[i + 1]), rel=1e-11)


def test_convergence_order_is_at_least_three():
    """On dw/du = tanh(u w), the flow of two equally likely points at -1 and 1, up to u = 1."""

    def solve(num_steps):
        predictor, corrector = adams_coefficients(num_steps)
        w, history = 1.5, [0.0]
        for i in range((num_steps + 1) // 2):
            guess = w + predictor[i, : len(history)] @ history[:3]
            history = [math.tanh((i + 1) / (num_steps - i) * guess), *history[:3]]
            w += corrector[i, : len(history)] @ history
        return w

    exact = solve(4095)
    errors = [abs(solve(num_steps) - exact) for num_steps in (31, 63, 127)]
    assert errors[0] < 3e-5
    assert math.log2(errors[0] / errors[1]) > 3
    assert math.log2(errors[1] / errors[2]) > 3
