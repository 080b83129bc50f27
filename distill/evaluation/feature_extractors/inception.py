"""The Inception network of 2015, the standard network of Frechet distances, through torch-fidelity.

Two programs use the same weights but preprocess images differently, so their distances differ: the evaluator of
guided-diffusion runs the TensorFlow graph, whose resize ignores pixel centres; pytorch-fid resizes as torch does. The
layers are torch-fidelity's, which equal pytorch-fid's: average pools that do not count their padding, and a max pool in
the last block. Only evaluation imports this module, never the trainer.
"""

from __future__ import annotations

import io
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
"""Length of an image's features, the network's last pool."""
SIDE = 299
"""Height and width of the network's input in pixels."""
UNTRACKED = ".num_batches_tracked"
"""A count that is missing in files from before torch 1.0 and never used."""

Convention = Literal["tensorflow", "torch"]
"""How an image is preprocessed: as by guided-diffusion's evaluator, or as by pytorch-fid."""


class Inception(nn.Module):
    """Features (B, 2048) of the last pool, and probabilities of 1,008 outputs, which are not the labels of ImageNet.

    Images are rounded to 8 bits a channel, as files store them; a grey channel is repeated three times. `network` is
    torch-fidelity's, with its weights.
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
        return self.body(preprocess(bytes_BIHW.expand(-1, 3, -1, -1), self.convention))

    def probabilities(self, features_BF: Tensor) -> Tensor | None:
        """Features to probabilities (B, 1008), without the last layer's bias, as in guided-diffusion's evaluator.

        None in the other convention: pytorch-fid computes only distances.
        """
        if self.convention == "torch":
            return None
        return (features_BF @ self.classes.weight.T).softmax(dim=1)


def preprocess(bytes_B3HW: Tensor, convention: Convention) -> Tensor:
    """Pixels 0 to 255 to the network's input, (B, 3, 299, 299), about -1 to 1."""
    if convention == "torch":
        unit_B3HW = bytes_B3HW / 255.0
        resized = F.interpolate(unit_B3HW, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return 2.0 * resized - 1.0
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    resized = interpolate_bilinear_2d_like_tensorflow1x(bytes_B3HW, size=(SIDE, SIDE), align_corners=False)
    return (resized - 128.0) / 128.0


def load_inception(convention: Convention, weights: str | None = None) -> Inception:
    """The network in eval mode and without gradients.

    `weights` is a file of torch-fidelity's weights; None for the copy in torch's hub folder, downloaded if it is missing.

    Raises:
        Refused: torch-fidelity is not installed, or the weights are missing, cannot be downloaded, or do not fit.
    """
    refuse_missing_package()
    path = local_weights(weights) or _download()
    network = _network_on_meta_device()
    content = read_checkpoint(path).content
    counts = {name: torch.zeros((), dtype=torch.int64) for name in network.state_dict() if name.endswith(UNTRACKED)}
    load_strictly(network, counts | content if isinstance(content, dict) else {}, path)
    return Inception(network, convention).eval().requires_grad_(False)


def refuse_missing_package() -> None:
    """Check that torch-fidelity is installed.

    Raises:
        Refused: it is not; the message contains the command that installs it.
    """
    if find_spec("torch_fidelity") is None:
        raise Refused(
            "these scores need the Inception network of torch-fidelity, which is not installed: "
            "pip install '.[evaluation]'"
        )


def local_weights(weights: str | None) -> Path | None:
    """The file of the weights: the named one, else torch-fidelity's if it was downloaded before, else None.

    Raises:
        Refused: the named file does not exist.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise Refused(f"evaluation.inception_weights: there is no file {path}; {_instructions()}")
        return path
    path = _cached()
    return path if path.is_file() else None


def _network_on_meta_device() -> nn.Module:
    """torch-fidelity's network without weights; its own loader, which trusts any pickle, gets an empty file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class OnMetaDevice(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(state_dict, *args, **kwargs) if state_dict else None

    empty_file = io.BytesIO()
    torch.save({}, empty_file)
    empty_file.seek(0)
    with on_meta_device():
        return OnMetaDevice("blank", [str(DIM)], feature_extractor_weights_path=empty_file)


def _download() -> Path:
    path = _cached()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_url(), str(path), progress=False)
    except OSError as error:  # from the network or the disk
        raise Refused(
            f"the Inception weights are not in {path.parent} and cannot be downloaded ({error}): {_instructions()}"
        ) from error
    return path


def _cached() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(_url()).path).name


def _url() -> str:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return str(URL_INCEPTION_V3)


def _instructions() -> str:
    return f"download {_url()} and name it with --set evaluation.inception_weights=FILE"
