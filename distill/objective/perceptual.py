"""The optional LPIPS distance between images (Zhang et al. 2018, arXiv 1801.03924).

LPIPS uses VGG16, trained on ImageNet labels. As it is part of the loss, no score that uses the same network may
evaluate the student; the Frechet distance uses features of another network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.config import TrainConfig
from distill.objective.losses import ImageDistance, squared_distance
from shards.core.errors import Failed, Refused


def image_distance(config: TrainConfig, device: torch.device) -> ImageDistance:
    """The distance that `train.image_distance` selects.

    Raises:
        Refused: LPIPS is selected but not installed.
        Failed: The LPIPS weights are neither cached nor available for download.
    """
    if config.image_distance == "squared" or not config.image_weight:
        return squared_distance
    try:
        import lpips
    except ImportError as error:
        raise Refused(
            "train.image_distance is lpips, which is not installed: pip install '.[lpips]', or set it to squared"
        ) from error
    try:
        network = lpips.LPIPS(net="vgg", verbose=False)
    except OSError as error:
        raise Failed(f"train.image_distance: the weights of LPIPS cannot be loaded: {error}") from error
    network = network.to(device).eval().requires_grad_(False)

    def distance(images_BIHW: Tensor, others_BIHW: Tensor) -> Tensor:
        # LPIPS was trained on three channels in [-1, 1].
        inputs = (image.clamp(-1.0, 1.0).expand(-1, 3, -1, -1) for image in (images_BIHW, others_BIHW))
        return network(*inputs).flatten()

    return distance
