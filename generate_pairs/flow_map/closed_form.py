"""The closed forms of the flow: denoiser and velocity. `flow_map.py` lists the equations."""

from __future__ import annotations

import torch
from torch import Tensor


def denoiser(x_NC: Tensor, t: float | Tensor, p_NV: Tensor, codebook_VC: Tensor) -> Tensor:
    """The expected codebook row given a state, equations (2) and (3).

    D(x, t) = sum_j pi_j c_j with pi_j = softmax_j( log p_j - |x - t c_j|^2 / (2 (1 - t)^2) ).

    Args:
        x_NC: States, one row per position.
        t: Flow time in [0, 1), one number or shape (N,).
        p_NV: Probabilities; they need not sum to one.
        codebook_VC: The codebook.

    Returns:
        D (N, C), in the dtype of the inputs.
    """
    t_N1 = torch.as_tensor(t, dtype=x_NC.dtype, device=x_NC.device).reshape(-1, 1)
    # |x|^2 is the same for every codebook row, so it cancels in the softmax.
    fit_NV = t_N1 * (x_NC @ codebook_VC.T) - 0.5 * t_N1**2 * codebook_VC.square().sum(dim=1)
    return torch.softmax(p_NV.log() + fit_NV / (1 - t_N1) ** 2, dim=1) @ codebook_VC


def velocity(x_NC: Tensor, t: float | Tensor, p_NV: Tensor, codebook_VC: Tensor) -> Tensor:
    """v(x, t) = (D(x, t) - x) / (1 - t), equation (4). The arguments are those of `denoiser`."""
    t_N1 = torch.as_tensor(t, dtype=x_NC.dtype, device=x_NC.device).reshape(-1, 1)
    return (denoiser(x_NC, t, p_NV, codebook_VC) - x_NC) / (1 - t_N1)


def default_num_steps(codebook_dim: int) -> int:
    """Steps at which a chi-square test of a million tokens does not detect a difference from p."""
    return 64 if codebook_dim <= 4 else 32
