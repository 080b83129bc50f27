"""Parameter groups, the learning-rate schedule and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.config import TrainConfig


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weights of matrices and convolutions decay, vectors (norms, biases) do not."""
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of update `step` (0-based): linear warmup, then constant or a half cosine to zero at `num_steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(step: int, config: TrainConfig) -> float:
    """Decay of the moving average after update `step`: min(ema_decay, (i + 1) / (i + 10))."""
    return min(config.ema_decay, (step + 1) / (step + 10))


@torch.no_grad()
def update_ema(averages: Sequence[Tensor], parameters: Sequence[Tensor], decay: float) -> None:
    """averages <- decay * averages + (1 - decay) * parameters, in place."""
    torch._foreach_lerp_(list(averages), list(parameters), 1 - decay)
