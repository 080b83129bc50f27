"""The Inception network of 2015 that the field's Frechet distances are measured with, through torch-fidelity.

Two programs look through the same weights and differ in what they do to an image first, and their distances differ, too:
the evaluator of guided-diffusion runs the TensorFlow graph, whose resize takes no account of pixel centres; pytorch-fid
resizes as torch does. The layers are torch-fidelity's, which are pytorch-fid's: average pools that do not count their
padding, and a max pool in the last block. Imported for evaluation only, never by the trainer.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.teachers.checkpoints import load_strictly
from generate_pairs.teachers.importing.checkpoint_file import read_checkpoint
from generate_pairs.teachers.meta_device import on_meta_device
from shards.core.errors import Refused

DIM = 2048
"""Numbers in an image's features: the network's last pool."""
SIDE = 299
"""Pixels to the side of the image that the network sees."""
UNTRACKED = ".num_batches_tracked"
"""A count that files from before torch 1.0 do not hold; nothing reads it."""

Convention = Literal["tensorflow", "torch"]
"""How an image is made ready: as guided-diffusion's evaluator does it, or as pytorch-fid."""


class Inception(nn.Module):
    """Features (B, 2048) of the last pool, and probabilities of 1,008 outputs, which are no labels of ImageNet.

    Images are taken as files hold them, rounded to 8 bits a channel; grey ones are repeated in all three channels.

    Args:
        network: torch-fidelity's, with its weights.
        convention: how an image is made ready.
    """

    dim = DIM
    knows_labels = False

    def __init__(self, network: nn.Module, convention: Convention) -> None:
        super().__init__()
        layers = dict(network.named_children())
        self.classes = cast(nn.Linear, layers.pop("fc"))
        self.body = nn.Sequential(*layers.values(), nn.Flatten())
        self.convention = convention

    def forward(self, images_BIHW: Tensor) -> Tensor:
        """Images (B, 1 or 3, height, width) in [0, 1] to features (B, 2048)."""
        bytes_BIHW = images_BIHW.float().clamp(0.0, 1.0).mul(255.0).round()
        return self.body(prepared(bytes_BIHW.expand(-1, 3, -1, -1), self.convention))

    def probabilities(self, features_BF: Tensor) -> Tensor | None:
        """Features to probabilities (B, 1008), without the last layer's bias, as guided-diffusion's evaluator has them.

        None by the other convention: pytorch-fid gives distances only.
        """
        if self.convention == "torch":
            return None
        return (features_BF @ self.classes.weight.T).softmax(dim=1)


def prepared(bytes_B3HW: Tensor, convention: Convention) -> Tensor:
    """Pixels 0 to 255 to what the network sees, (B, 3, 299, 299), about -1 to 1."""
    if convention == "torch":
        unit_B3HW = bytes_B3HW / 255.0
        resized = F.interpolate(unit_B3HW, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return 2.0 * resized - 1.0
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    resized = interpolate_bilinear_2d_like_tensorflow1x(bytes_B3HW, size=(SIDE, SIDE), align_corners=False)
    return (resized - 128.0) / 128.0


def load_inception(convention: Convention, weights: str | None = None) -> Inception:
    """The network with its weights, in eval mode and without gradients.

    Args:
        convention: how images are made ready.
        weights: file of torch-fidelity's weights; None for the copy in torch's hub folder, downloaded if it is not there.

    Raises:
        Refused: torch-fidelity is not installed, or the weights are not here, cannot be had, or do not fit.
    """
    refuse_missing_package()
    path = local_weights(weights) or _downloaded()
    network = _blank_network()
    load_strictly(network, _with_counts(read_checkpoint(path).content, network), path)
    return Inception(network, convention).eval().requires_grad_(False)


def refuse_missing_package() -> None:
    """Refuse where torch-fidelity is not installed.

    Raises:
        Refused: with the way to it.
    """
    if find_spec("torch_fidelity") is None:
        raise Refused(
            "these scores look through the Inception network of torch-fidelity, which is not installed: "
            "pip install '.[evaluation]'"
        )


def local_weights(weights: str | None) -> Path | None:
    """The file of the weights: the one that is named, or torch-fidelity's own where it was downloaded before, or None.

    Raises:
        Refused: the one that is named is not there.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise Refused(f"evaluation.inception_weights: there is no file {path}; {_the_way()}")
        return path
    path = _cached()
    return path if path.is_file() else None


def _with_counts(content: Any, network: nn.Module) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    counts = {name: tensor for name, tensor in network.state_dict().items() if name.endswith(UNTRACKED)}
    zeros = {name: torch.zeros(like.shape, dtype=like.dtype) for name, like in counts.items()}
    return {**zeros, **content}


def _blank_network() -> nn.Module:
    """torch-fidelity's network on the meta device; its own loader, which trusts any pickle, gets nothing to load."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class OnMetaDevice(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: Any, **more: Any) -> Any:
            return super().load_state_dict(*arguments, **more) if self.loads else None

        loads = False

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with on_meta_device():
        network = OnMetaDevice("blank", [str(DIM)], feature_extractor_weights_path=nothing)
    network.loads = True
    return network


def _downloaded() -> Path:
    path = _cached()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_url(), str(path), progress=False)
    except OSError as error:  # of the network as of the disk
        raise Refused(
            f"the Inception weights are not in {path.parent} and cannot be downloaded ({error}): {_the_way()}"
        ) from error
    return path


def _cached() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(_url()).path).name


def _url() -> str:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return str(URL_INCEPTION_V3)


def _the_way() -> str:
    return f"get {_url()} and name it with --set evaluation.inception_weights=FILE"
