"""Exponential Adams method of third order: its coefficients, and the number of its steps."""

from __future__ import annotations

import numpy as np


def default_num_steps(codebook_dim: int) -> int:
    """Steps at which a chi-square test of a million tokens does not detect a difference from p."""
    return 64 if codebook_dim <= 4 else 32


def adams_coefficients(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the predictor and the corrector for dw/du = D, equation (5), with u = tau / (1 - tau).

    The grid is tau_i = i / (S + 1). With the nodes k (predictor: tau_i, tau_{i-1}, tau_{i-2}; corrector: also
    tau_{i+1}; near the start only those that exist) and their Lagrange basis L_k:

        (8)  w_{i+1} = w_i + sum_k b_ik D_k,   b_ik = integral of L_k(tau) / (1 - tau)^2 over [tau_i, tau_{i+1}]

    Returns:
        Predictor (S, 3) and corrector (S, 4), float64, newest node first, zero where a node does not exist.
    """
    # 20 points are exact in float64: the pole at tau = 1 is at least one step away.
    points, weights = np.polynomial.legendre.leggauss(20)
    x, weights = (points + 1) / 2, weights / 2  # position inside the step, in units of the step
    predictor, corrector = np.zeros((num_steps, 3)), np.zeros((num_steps, 4))
    for i in range(num_steps):
        measure = (num_steps + 1) * weights / (num_steps + 1 - i - x) ** 2
        for table, newest in ((predictor, 0), (corrector, 1)):
            nodes = range(newest, max(-3, -i - 1), -1)
            for k, node in enumerate(nodes):
                basis = np.prod([(x - other) / (node - other) for other in nodes if other != node], axis=0)
                table[i, k] = np.sum(measure * basis)
    return predictor, corrector
