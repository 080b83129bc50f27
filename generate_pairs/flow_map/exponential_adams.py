"""Weights of an exponential Adams method of third order, computed rather than tabulated."""

from __future__ import annotations

import numpy as np


def adams_coefficients(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the exponential Adams predictor and corrector on the grid tau_i = i / (num_steps + 1).

    b_ik, c_ik = integral over [tau_i, tau_{i+1}] of L_k(tau) / (1 - tau)^2, with L_k the Lagrange basis on
    tau_i, tau_{i-1}, tau_{i-2} (predictor b) and on tau_{i+1}, tau_i, tau_{i-1}, tau_{i-2} (corrector c), as
    many of these nodes as exist.

    Args:
        num_steps: N, at least 1.

    Returns:
        b (N, 3) and c (N, 4), float64, newest node first, zero where a node does not exist.
    """
    points, weights = np.polynomial.legendre.leggauss(20)  # exact in float64: the pole is a whole step away
    x, weights = (points + 1) / 2, weights / 2  # place inside the step, in steps
    predictor, corrector = np.zeros((num_steps, 3)), np.zeros((num_steps, 4))
    for i in range(num_steps):
        measure = (num_steps + 1) * weights / (num_steps + 1 - i - x) ** 2
        for table, newest in ((predictor, 0), (corrector, 1)):
            nodes = range(newest, max(-3, -i - 1), -1)
            for k, node in enumerate(nodes):
                basis = np.prod([(x - other) / (node - other) for other in nodes if other != node], axis=0)
                table[i, k] = np.sum(measure * basis)
    return predictor, corrector
