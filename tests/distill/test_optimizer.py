"""Schedule, parameter groups and the moving average, against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distill.config import TrainConfig
from distill.optimizer import build_optimizer, ema_decay, learning_rate, update_ema

CONFIG = TrainConfig(num_steps=1000, warmup_steps=100, learning_rate=2e-3, ema_decay=0.99, weight_decay=0.1)


def test_warmup_is_linear_and_ends_at_the_full_rate() -> None:
    assert learning_rate(0, CONFIG) == pytest.approx(2e-5)
    assert learning_rate(49, CONFIG) == pytest.approx(1e-3)
    assert learning_rate(99, CONFIG) == pytest.approx(2e-3)


def test_cosine_falls_from_the_full_rate_to_zero() -> None:
    assert learning_rate(100, CONFIG) == pytest.approx(2e-3)
    assert learning_rate(550, CONFIG) == pytest.approx(1e-3)
    assert learning_rate(775, CONFIG) == pytest.approx(1e-3 * (1 + math.cos(0.75 * math.pi)))
    assert learning_rate(1000, CONFIG) == pytest.approx(0.0, abs=1e-18)


def test_constant_schedule_stays() -> None:
    constant = CONFIG.model_copy(update={"schedule": "constant"})
    assert {learning_rate(step, constant) for step in range(100, 1000, 100)} == {2e-3}


def test_ema_starts_short_and_ends_at_its_cap() -> None:
    assert ema_decay(0, CONFIG) == pytest.approx(0.1)
    assert ema_decay(89, CONFIG) == pytest.approx(90 / 99)
    assert ema_decay(100_000, CONFIG) == 0.99


def test_average_moves_by_one_minus_decay() -> None:
    averages = [torch.zeros(3), torch.ones(2, 2)]
    update_ema(averages, [torch.ones(3), torch.full((2, 2), 3.0)], 0.75)
    torch.testing.assert_close(averages, [torch.full((3,), 0.25), torch.full((2, 2), 1.5)])


def test_only_matrices_decay() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    decaying, plain = build_optimizer(network, CONFIG).param_groups
    assert [p.shape for p in decaying["params"]] == [(4, 4)]
    assert decaying["weight_decay"] == 0.1
    assert len(plain["params"]) == 3
    assert plain["weight_decay"] == 0.0
