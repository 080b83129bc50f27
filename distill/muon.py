"""Muon: matrices move along the orthogonal factor of their momentum.

Source: Jordan et al., https://kellerjordan.github.io/posts/muon/. torch has one since 2.9, which goes through matrices
one by one and multiplies in bfloat16. On processors that only imitate bfloat16 this took half of a training of the
digits. Here equal shapes are one batch, and a processor computes in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of a step X <- a X + b (X X') X + c (X X')^2 X, which brings singular values from (0, 1] near 1, soon if not
exactly.
"""
NUM_STEPS = 5
SMALLEST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum by Nesterov, made orthogonal; a tall matrix of A rows and B columns moves sqrt(A / B) times as far."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, *, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        """Without state yet.

        Raises:
            ValueError: a parameter is no matrix.
        """
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon moves matrices, not tensors of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update from the gradients that are there."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append(parameter)
            for (rows, columns), alike in by_shape.items():
                momentum = [self._momentum_of(parameter) for parameter in alike]
                gradients = [parameter.grad for parameter in alike if parameter.grad is not None]
                torch._foreach_lerp_(momentum, gradients, 1 - group["momentum"])
                ahead_NAB = torch.stack(torch._foreach_lerp(gradients, momentum, group["momentum"]))
                moves = orthogonal(ahead_NAB).to(ahead_NAB.dtype).unbind()
                torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(alike, moves, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
        return loss

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonal(matrices_NAB: Tensor) -> Tensor:
    """Each matrix with its singular values brought near 1, by Newton and Schulz; in bfloat16 on a GPU, else in float32.

    Args:
        matrices_NAB: N matrices.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices_NAB.shape[1] > matrices_NAB.shape[2]
    x_NAB = matrices_NAB.bfloat16() if matrices_NAB.is_cuda else matrices_NAB.float()
    x_NAB = x_NAB.mT if is_tall else x_NAB
    x_NAB = x_NAB / torch.linalg.matrix_norm(x_NAB, keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(NUM_STEPS):
        gram_NAA = x_NAB @ x_NAB.mT
        x_NAB = torch.baddbmm(
            x_NAB, torch.baddbmm(gram_NAA, gram_NAA, gram_NAA, beta=b, alpha=c), x_NAB, beta=a
        )
    return x_NAB.mT if is_tall else x_NAB
