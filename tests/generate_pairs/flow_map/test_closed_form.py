"""Denoiser and velocity against their definitions."""

from __future__ import annotations

import torch
from torch import Tensor

from generate_pairs.flow_map.closed_form import default_num_steps, denoiser, velocity


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_default_num_steps():
    assert [default_num_steps(dim) for dim in (1, 3, 4, 6, 8, 32)] == [64, 64, 64, 32, 32, 32]


def test_denoiser_is_the_posterior_mean():
    x, codebook = gaussian(5, 3, seed=0).double(), gaussian(7, 3, seed=1).double()
    p = gaussian(5, 7, seed=2).double().softmax(dim=1)
    for t in (0.0, 0.3, 0.9):
        distance = (x[:, None] - t * codebook).square().sum(dim=2)
        weights = p * torch.exp(-distance / (2 * (1 - t) ** 2))
        expected = weights @ codebook / weights.sum(dim=1, keepdim=True)
        torch.testing.assert_close(denoiser(x, t, p, codebook), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(denoiser(x, 0.0, p, codebook), p @ codebook)


def test_velocity_and_denoiser_agree_with_the_flow_in_w_and_u(reference):
    """With u = t / (1 - t), w = x / (1 - t): dx/dt = v is dw/du = D, and D(x, t) the softmax in (w, u)."""
    x, codebook = gaussian(5, 3, seed=0).double(), gaussian(7, 3, seed=1).double()
    p = gaussian(5, 7, seed=2).double().softmax(dim=1)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    v, mean = velocity(x, t, p, codebook), denoiser(x, t, p, codebook)
    dw_dt = v / (1 - t[:, None]) + x / (1 - t[:, None]) ** 2
    du_dt = 1 / (1 - t[:, None]) ** 2
    torch.testing.assert_close(dw_dt / du_dt, mean, atol=1e-12, rtol=1e-12)
    w, u = x / (1 - t[:, None]), t / (1 - t)
    torch.testing.assert_close(reference.posterior(w, u, p.log(), codebook) @ codebook, mean)
