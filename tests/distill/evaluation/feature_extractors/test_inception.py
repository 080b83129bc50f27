"""The Inception network: torch-fidelity's and pytorch-fid's numbers from the same random weights, and strict loading.

Published weights are not available here. Tests of an optional package are skipped if it is not installed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from distill.evaluation.feature_extractors import inception
from distill.evaluation.feature_extractors.inception import DIM, load_inception, local_weights, preprocess
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

OPTIONAL = "not installed: pip install '.[evaluation]'"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in a file like torch-fidelity's, scaled so that activations are about one."""
    pytest.importorskip("torch_fidelity", reason=OPTIONAL)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random_state(), path)
    return path


def random_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, like in inception._network_on_meta_device().state_dict().items():
        values = torch.randn(like.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            values = values.abs() + 0.5
        elif "bn" in name:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            values *= math.sqrt(2.0 / max(1, like[0].numel()))
        state[name] = values
    return state


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Three images of 8 bits a channel as [0, 1]: noise, a checkerboard, a ramp."""
    noise = torch.randint(0, 256, (3, 40, 40), generator=torch.Generator().manual_seed(1))
    square = torch.arange(40)
    board = 255 * ((square[:, None] + square) % 2).expand(3, 40, 40)
    ramp = (6 * square).expand(3, 40, 40)
    return torch.stack([noise, board, ramp]) / 255.0


def test_features_and_probabilities_are_torch_fidelitys(weights: Path, images: Tensor) -> None:
    """As guided-diffusion's evaluator: TensorFlow's resize, 2,048 features, 1,008 outputs without a bias."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"], str(weights))
    with torch.inference_mode():
        features, logits = theirs((images * 255).round().to(torch.uint8))
        ours = load_inception("tensorflow", str(weights))
        found = ours(images)
        probabilities = ours.probabilities(found)
    assert found.shape == (3, DIM)
    assert found.std() > 0.01
    torch.testing.assert_close(found, features, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(probabilities, logits.softmax(dim=1), rtol=1e-5, atol=1e-8)
    assert probabilities.shape == (3, 1008)


def test_features_are_pytorch_fids(weights: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the official code of Distilled Decoding: torch's resize of [0, 1], then 2 x - 1."""
    peer = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *_, **__: torch.load(weights))
    theirs = peer.InceptionV3([peer.InceptionV3.BLOCK_INDEX_BY_DIM[DIM]]).eval()
    with torch.inference_mode():
        features = theirs(images)[0].flatten(1)
        ours = load_inception("torch", str(weights))
        found = ours(images)
        other = load_inception("tensorflow", str(weights))(images)
    torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-5)
    assert ours.probabilities(found) is None
    # On small images the two resizes give clearly different features.
    assert (found - other).abs().max() > 100 * (found - features).abs().max()


def test_images_are_rounded_as_files_store_them(weights: Path, images: Tensor) -> None:
    ours = load_inception("tensorflow", str(weights))
    grey = images[:, :1]
    with torch.inference_mode():
        assert torch.equal(ours(images + 0.001), ours(images))
        assert torch.equal(ours(grey), ours(grey.repeat(1, 3, 1, 1)))


def test_loading_draws_no_random_numbers(weights: Path) -> None:
    before = torch.get_rng_state()
    network = load_inception("torch", str(weights))
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


class RunsCode:
    """Runs code if a pickle is trusted."""

    def __reduce__(self) -> Any:
        return print, ("loaded",)


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fc.bias"), "missing fc.bias"),
        (lambda state: state.update(more=torch.zeros(1)), "unknown more"),
        (lambda state: state.update({"fc.weight": torch.zeros(1000, DIM)}), r"fc.weight is \[1000, 2048\]"),
        (lambda state: state.update(code=RunsCode()), "may run code"),
    ],
)
def test_other_weights_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    state = random_state()
    change(state)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(Refused, match=message):
        load_inception("tensorflow", str(tmp_path / "wrong.pth"))


def test_a_missing_package_is_refused_with_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"not installed: pip install '\.\[evaluation\]'"):
        load_inception("tensorflow", "anything")


def test_missing_weights_are_refused_with_instructions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason=OPTIONAL)

    def offline(url: str, *_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    url = r"https://github\.com/.*6726825d\.pth"
    instructions = rf"download {url} and name it with --set evaluation\.inception_weights=FILE"
    with pytest.raises(Refused, match=rf"cannot be downloaded .*no network.*{instructions}"):
        load_inception("tensorflow")
    assert local_weights(None) is None
    with pytest.raises(Refused, match=rf"there is no file .*nowhere\.pth; {instructions}"):
        load_inception("tensorflow", str(tmp_path / "nowhere.pth"))
    cached = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.touch()
    assert local_weights(None) == cached


def test_preprocessing_for_torch() -> None:
    for byte, value in ((0.0, -1.0), (255.0, 1.0)):
        ready = preprocess(torch.full((1, 3, 4, 4), byte), "torch")
        torch.testing.assert_close(ready, torch.full((1, 3, 299, 299), value))


def test_preprocessing_for_tensorflow() -> None:
    """Its old resize: output pixel i takes input position i * 2 / 299, so the second half is beyond the last centre."""
    pytest.importorskip("torch_fidelity", reason=OPTIONAL)
    pixels = torch.tensor([0.0, 128.0]).expand(1, 3, 2, 2)
    ready = preprocess(pixels, "tensorflow")
    position = torch.arange(299) * (2 / 299)
    expected = 128.0 * position.clamp(max=1.0) / 128.0 - 1.0
    torch.testing.assert_close(ready[0, 0, 0], expected, rtol=0, atol=1e-5)
