"""Which optimizer moves which parameters, the schedule of their rates, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.activations import layers_of
from distill.config import TrainConfig
from distill.muon import Muon


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
