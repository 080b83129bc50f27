"""AdamW and Muon, the learning rate schedule, and the exponential moving average of weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from distill.config import TrainConfig
from distill.training.activations import layer_stack


class Optimizer:
    """AdamW for all parameters, or Muon for the matrices of the layers and AdamW for the rest, on one schedule."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        """Create the optimizers without state; raises as `build_optimizers`."""
        self.config = config
        self.parts = build_optimizers(network, config)
        self._part = {id(p): part for part in self.parts for group in part.param_groups for p in group["params"]}

    def step(self, number: int) -> None:
        """Apply update `number` (0-based) from the current gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = part.defaults["lr"] * schedule(number, self.config)
            part.step()

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's state tensors by name; empty if it never had a gradient."""
        return self._part[id(parameter)].state.get(parameter, {})

    def restore(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        """Set a parameter's state to one from `state_of`."""
        self._part[id(parameter)].state[parameter] = state


def build_optimizers(network: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon if selected; each parameter is in one of them. Weight decay skips vectors.

    Raises:
        Refused: Muon is selected, and the network has no `ModuleList` of layers.
    """
    is_muon = config.optimizer == "muon"
    matrices = [p for p in layer_stack(network).parameters() if p.ndim == 2] if is_muon else []
    muon_ids = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in network.parameters() if id(parameter) not in muon_ids]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    if not matrices:
        return [adamw]
    muon = Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return [adamw, muon]


def learning_rate(step: int, config: TrainConfig) -> float:
    """AdamW's learning rate at update `step` (0-based)."""
    return config.learning_rate * schedule(step, config)


def schedule(step: int, config: TrainConfig) -> float:
    """The factor of the peak rates at update `step` (0-based): linear warmup, then constant or a half cosine that
    reaches zero at `num_steps`.
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
"""a, b, c of the iteration X <- a X + b (X X') X + c (X X')^2 X, which quickly moves singular values from (0, 1] to
about 1.
"""
NUM_ITERATIONS = 5
MIN_NORM = 1e-7
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum; the update of a tall matrix (A, B) is multiplied by sqrt(A / B)."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        """Create the optimizer without state; raises ValueError for a parameter that is not a matrix."""
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon updates matrices, not tensors of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Apply one update from the current gradients."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                momentum = [self._momentum_of(parameter) for parameter in parameters]
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                torch._foreach_lerp_(momentum, gradients, 1 - MOMENTUM)
                nesterov_NAB = torch.stack(torch._foreach_lerp(gradients, momentum, MOMENTUM))
                updates = orthogonal(nesterov_NAB).to(nesterov_NAB.dtype).unbind()
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, updates, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonal(matrices_NAB: Tensor) -> Tensor:
    """Move singular values of N matrices to about 1 with a Newton-Schulz iteration; bfloat16 on a GPU, else float32."""
    a, b, c = COEFFICIENTS
    is_tall = matrices_NAB.shape[1] > matrices_NAB.shape[2]
    x_NAB = matrices_NAB.bfloat16() if matrices_NAB.is_cuda else matrices_NAB.float()
    x_NAB = x_NAB.mT if is_tall else x_NAB
    x_NAB = x_NAB / torch.linalg.matrix_norm(x_NAB, keepdim=True).clamp(min=MIN_NORM)
    for _ in range(NUM_ITERATIONS):
        gram_NAA = x_NAB @ x_NAB.mT
        x_NAB = torch.baddbmm(x_NAB, torch.baddbmm(gram_NAA, gram_NAA, gram_NAA, beta=b, alpha=c), x_NAB, beta=a)
    return x_NAB.mT if is_tall else x_NAB
