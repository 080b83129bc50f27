"""Schedule, parameter groups and the moving average, against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distill.config import TrainConfig
from distill.training.optimizers import Optimizer, build_optimizers, ema_decay, learning_rate, update_ema
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

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


def test_ema_decay_rises_to_its_limit() -> None:
    assert ema_decay(0, CONFIG) == pytest.approx(0.1)
    assert ema_decay(89, CONFIG) == pytest.approx(90 / 99)
    assert ema_decay(100_000, CONFIG) == 0.99


def test_average_moves_by_one_minus_decay() -> None:
    averages = [torch.zeros(3), torch.ones(2, 2)]
    update_ema(averages, [torch.ones(3), torch.full((2, 2), 3.0)], 0.75)
    torch.testing.assert_close(averages, [torch.full((3,), 0.25), torch.full((2, 2), 1.5)])


def test_only_matrices_decay() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    (adamw,) = build_optimizers(network, CONFIG)
    decaying, plain = adamw.param_groups
    assert [p.shape for p in decaying["params"]] == [(4, 4)]
    assert decaying["weight_decay"] == 0.1
    assert len(plain["params"]) == 3
    assert plain["weight_decay"] == 0.0


class Layered(nn.Module):
    """Two layers between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2))
        self.head = nn.Linear(4, 2)


def test_muon_has_the_matrices_of_layers_and_adamw_the_rest() -> None:
    network = Layered()
    config = CONFIG.model_copy(update={"optimizer": "muon", "muon_learning_rate": 0.3})
    adamw, muon = build_optimizers(network, config)
    (group,) = muon.param_groups
    assert {id(p) for p in group["params"]} == {id(layer[0].weight) for layer in network.layers}
    assert group["weight_decay"] == 0.1
    assert muon.defaults["lr"] == 0.3
    names = {id(p): name for name, p in network.named_parameters()}
    others = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert others == {*names.values()} - {"layers.0.0.weight", "layers.1.0.weight"}


def test_both_follow_one_schedule() -> None:
    network = Layered()
    optimizer = Optimizer(network, CONFIG.model_copy(update={"optimizer": "muon"}))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(49)
    rates = [group["lr"] for part in optimizer.parts for group in part.param_groups]
    assert rates == pytest.approx([1e-3, 1e-3, 0.01])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_with_restored_state_continues_equally(name: str) -> None:
    config = CONFIG.model_copy(update={"optimizer": name})
    torch.manual_seed(0)
    network, other = Layered(), Layered()
    first, second = Optimizer(network, config), Optimizer(other, config)

    def step(model: nn.Module, optimizer: Optimizer, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step(number)

    step(network, first, 0)
    other.load_state_dict(network.state_dict())
    for own, theirs in zip(network.parameters(), other.parameters(), strict=True):
        second.restore(theirs, {key: value.clone() for key, value in first.state_of(own).items()})
    step(network, first, 1)
    step(other, second, 1)
    for own, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, theirs)


def test_a_network_without_layers_is_refused_for_muon() -> None:
    with pytest.raises(Refused, match=r"train\.optimizer=muon need layers .* Linear has none"):
        build_optimizers(nn.Linear(2, 2), CONFIG.model_copy(update={"optimizer": "muon"}))
