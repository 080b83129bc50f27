"""The distance between images as LPIPS: with a stand-in for its network, whose weights are not here."""

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

CPU = torch.device("cpu")
ASKED = TrainConfig(image_weight=1.0, image_distance="lpips")


class Standing(nn.Module):
    """LPIPS's interface: two batches of three channels in [-1, 1] to (B, 1, 1, 1)."""

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
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Standing))
    distance = image_distance(ASKED, CPU)
    images = torch.full((2, 1, 4, 4), 2.0, requires_grad=True)
    others = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    found_B = distance(images, others)
    assert found_B.tolist() == [3.0, 0.0]
    found_B.sum().backward()
    assert images.grad is not None


def test_nothing_of_its_network_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Standing] = []

    def standing(**options: object) -> Standing:
        made.append(Standing(**options))
        return made[-1]

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=standing))
    images = torch.zeros(1, 3, 4, 4, requires_grad=True)
    image_distance(ASKED, CPU)(images, torch.ones(1, 3, 4, 4)).sum().backward()
    (network,) = made
    assert network.weight.grad is None
    assert not network.training


def test_a_package_that_is_not_here_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(Refused, match=r"pip install '\.\[lpips\]', or set it to squared"):
        image_distance(ASKED, CPU)


def test_weights_that_cannot_be_had_fail_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**_: object) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=unreachable))
    with pytest.raises(Failed, match="weights of LPIPS cannot be had: no route to host"):
        image_distance(ASKED, CPU)


@pytest.mark.parametrize("config", [TrainConfig(image_weight=1.0), TrainConfig(image_distance="lpips")])
def test_it_is_not_loaded_where_it_is_not_needed(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert image_distance(config, CPU) is squared_distance
