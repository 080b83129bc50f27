"""LPIPS as image distance, with a fake network because its weights are not available."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from distill.config import TrainConfig
from distill.objective.losses import squared_distance
from distill.objective.perceptual import image_distance
from shards.core.errors import Failed, Refused

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")
LPIPS_CONFIG = TrainConfig(image_weight=1.0, image_distance="lpips")


class FakeLpips(nn.Module):
    """The interface of LPIPS: two batches of three channels in [-1, 1] to (B, 1, 1, 1)."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "vgg"
        assert not verbose
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        assert images.shape[1] == others.shape[1] == 3
        assert max(images.abs().max(), others.abs().max()) <= 1
        return self.weight * (images - others).abs().mean((1, 2, 3), keepdim=True)


def test_one_channel_becomes_three_and_numbers_are_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=FakeLpips))
    distance = image_distance(LPIPS_CONFIG, CPU)
    images = torch.full((2, 1, 4, 4), 2.0, requires_grad=True)
    others = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    distance_B = distance(images, others)
    assert distance_B.tolist() == [3.0, 0.0]
    distance_B.sum().backward()
    assert images.grad is not None


def test_its_network_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FakeLpips] = []

    def build(**options: object) -> FakeLpips:
        made.append(FakeLpips(**options))
        return made[-1]

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=build))
    images = torch.zeros(1, 3, 4, 4, requires_grad=True)
    image_distance(LPIPS_CONFIG, CPU)(images, torch.ones(1, 3, 4, 4)).sum().backward()
    (network,) = made
    assert network.weight.grad is None
    assert not network.training


def test_a_missing_package_is_refused_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(Refused, match=r"pip install '\.\[lpips\]', or set it to squared"):
        image_distance(LPIPS_CONFIG, CPU)


def test_unavailable_weights_fail_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**_: object) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=unreachable))
    with pytest.raises(Failed, match="weights of LPIPS cannot be loaded: no route to host"):
        image_distance(LPIPS_CONFIG, CPU)


@pytest.mark.parametrize("config", [TrainConfig(image_weight=1.0), TrainConfig(image_distance="lpips")])
def test_it_is_not_loaded_if_not_needed(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert image_distance(config, CPU) is squared_distance
