"""Which optimizer moves which parameters, the schedule of their rates, and the moving average of weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from distill.config import TrainConfig
from distill.training.activations import layers_of


class Optimizer:
    """AdamW for everything, or Muon for the matrices of the network's layers and AdamW for the rest, on one schedule."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        """Without state yet.

        Raises:
            Refused: Muon is asked for, and the network has no stack of layers.
        """
        self.config = config
        self.parts = build_optimizers(network, config)
        self._part = {
            id(p): part for part in self.parts for group in part.param_groups for p in group["params"]
        }

    def step(self, number: int) -> None:
        """Update `number` (0-based) from the gradients that are there."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = part.defaults["lr"] * schedule(number, self.config)
            part.step()

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept for a parameter, by its name; nothing for one that never had a gradient."""
        return self._part[id(parameter)].state.get(parameter, {})

    def restore(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        """Go on from what `state_of` gave."""
        self._part[id(parameter)].state[parameter] = state


def build_optimizers(network: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """One or two, each parameter in one of them; weights of matrices and convolutions decay, vectors do not.

    Raises:
        Refused: as `Optimizer`.
    """
    by_muon = _layers_matrices(network) if config.optimizer == "muon" else []
    taken = {id(parameter) for parameter in by_muon}
    others = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    if not by_muon:
        return [adamw]
    muon = Muon(by_muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return [adamw, muon]


def _layers_matrices(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in layers_of(network).parameters() if parameter.ndim == 2]


def learning_rate(step: int, config: TrainConfig) -> float:
    """AdamW's rate of update `step` (0-based)."""
    return config.learning_rate * schedule(step, config)


def schedule(step: int, config: TrainConfig) -> float:
    """The share of the full rates at update `step` (0-based): linear warmup, then constant or a half cosine to zero at
    `num_steps`.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(step: int, config: TrainConfig) -> float:
    """Decay of the moving average after update `step`: min(ema_decay, (i + 1) / (i + 10))."""
    return min(config.ema_decay, (step + 1) / (step + 10))


@torch.no_grad()
def update_ema(averages: Sequence[Tensor], parameters: Sequence[Tensor], decay: float) -> None:
    """averages <- decay * averages + (1 - decay) * parameters, in place."""
    torch._foreach_lerp_(list(averages), list(parameters), 1 - decay)


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
