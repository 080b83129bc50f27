"""A slow reference solver of the flow: Dormand-Prince 5(4) in float64, with adaptive steps per row.

It shares with the production map only the differential equation dw/du = D(w, u), w(0) = noise: neither the grid, nor
the formula of D, nor the stopping rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Dormand and Prince 1980: the Runge-Kutta matrix (its last row is the solution), then the error weights.
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def posterior(w_NC: Tensor, u_N: Tensor, log_p_NV: Tensor, codebook_VC: Tensor) -> Tensor:
    """pi_j proportional to p_j exp(u <w, c_j> - u^2 |c_j|^2 / 2): (N, V)."""
    u_N1 = u_N[:, None]
    fit_NV = u_N1 * (w_NC @ codebook_VC.T) - 0.5 * u_N1**2 * codebook_VC.square().sum(dim=1)
    return torch.softmax(log_p_NV + fit_NV, dim=1)


def reference_tokens(
    noise_NC: Tensor,
    log_p_NV: Tensor,
    codebook_VC: Tensor,
    tolerance: float = 1e-7,
    settled: float = 1e-6,
    max_steps: int = 5000,
) -> Tensor:
    """Solve every row until the weight of the other tokens is below `settled` times their initial weight.

    Args:
        noise_NC: Noise, any float dtype.
        log_p_NV: Log-probabilities, -inf for impossible tokens.
        codebook_VC: Codebook rows.
        tolerance: Error allowed in one step, absolute and relative, in the units of the noise.
        settled: The share of the others' initial weight below which a row is finished.
        max_steps: The largest number of steps of a row.

    Returns:
        Tokens (N,), int64.

    Raises:
        RuntimeError: A row does not settle in `max_steps` steps.
    """
    log_p, codebook, w = log_p_NV.double().log_softmax(dim=1), codebook_VC.double(), noise_NC.double()
    codebook = codebook - codebook.mean(dim=0)
    codebook = codebook / codebook.square().mean().sqrt().clamp_min(1e-300)
    tokens = log_p.argmax(dim=1)
    others = log_p.exp().scatter(1, tokens[:, None], 0.0).sum(dim=1)
    row = (others > 0).nonzero().squeeze(1)
    log_p, w, others = log_p[row], w[row], others[row]
    u, h = torch.zeros_like(others), torch.full_like(others, 1e-3)
    first = posterior(w, u, log_p, codebook) @ codebook
    for _ in range(max_steps):
        slopes = [first]
        for weights in STAGES:
            step = h[:, None] * sum(a * k for a, k in zip(weights, slopes, strict=True))
            pi = posterior(w + step, u + h * sum(weights), log_p, codebook)
            slopes.append(pi @ codebook)
        error = h[:, None] * sum(e * k for e, k in zip(ERROR, slopes, strict=True))
        ratio = (error / (tolerance * (1 + (w + step).abs()))).abs().amax(dim=1)
        accepted = ratio <= 1
        w = torch.where(accepted[:, None], w + step, w)
        first = torch.where(accepted[:, None], slopes[-1], first)
        u = torch.where(accepted, u + h, u)
        h = h * (0.9 * ratio.clamp_min(1e-10) ** -0.2).clamp(0.2, 5.0)
        top = pi.argmax(dim=1)
        rest = pi.scatter(1, top[:, None], 0.0).sum(dim=1)
        done = accepted & (rest < settled * others)
        tokens[row[done]] = top[done]
        on = ~done
        if not bool(on.any()):
            return tokens
        row, log_p, w, u, h, others, first = (x[on] for x in (row, log_p, w, u, h, others, first))
    raise RuntimeError(f"{len(row)} rows did not settle in {max_steps} steps, the first is row {int(row[0])}")
