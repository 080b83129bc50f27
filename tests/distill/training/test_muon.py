"""Muon against torch's implementation, and against the orthogonal factor that it approximates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.training.optimizers import Muon, orthogonal

pytestmark = pytest.mark.quick


def matrices() -> list[nn.Parameter]:
    generator = torch.manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 8), (8, 24)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_equal_those_of_torch_up_to_bfloat16_rounding(weight_decay: float) -> None:
    ours, theirs = matrices(), matrices()
    one = Muon(ours, lr=0.05, weight_decay=weight_decay)
    other = torch.optim.Muon(theirs, lr=0.05, weight_decay=weight_decay)
    generator = torch.manual_seed(1)
    for _ in range(6):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            its.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, its, start in zip(ours, theirs, matrices(), strict=True):
        moved = (its - start).norm()
        assert (mine - its).norm() < 0.02 * moved
        assert moved > 0.5


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 40, 10), (2, 10, 40)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    given = torch.randn(shape, generator=torch.manual_seed(2))
    found = orthogonal(given)
    values = torch.linalg.svdvals(found)
    # The published coefficients do not converge: they end between about .7 and 1.2.
    assert values.min() > 0.4
    assert values.max() < 1.3
    U, _, Vh = torch.linalg.svd(given, full_matrices=False)
    inside = U.mT @ found @ Vh.mT
    torch.testing.assert_close(inside, torch.diag_embed(inside.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-4)


def test_parameters_without_a_gradient_stay_and_vectors_are_refused() -> None:
    moved, still = matrices()[:2]
    before = still.detach().clone()
    moved.grad = torch.ones_like(moved)
    optimizer = Muon([moved, still], lr=0.1)
    optimizer.step()
    assert torch.equal(still, before)
    assert still not in optimizer.state
    assert not torch.equal(moved, matrices()[0])
    with pytest.raises(ValueError, match=r"not tensors of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    (parameter,) = matrices()[:1]
    before = parameter.detach().clone()
    parameter.grad = torch.zeros_like(parameter)
    Muon([parameter], lr=0.1).step()
    assert torch.equal(parameter, before)
