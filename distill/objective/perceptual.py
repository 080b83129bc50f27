"""How far two images are apart as a network sees them: LPIPS (Zhang et al. 2018, arXiv 1801.03924), an extra.

Its network is VGG16, trained on ImageNet's labels. It enters the loss, so no score that rests on the same network may
judge the student; the features of the Frechet distance come from another one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.config import TrainConfig
from distill.objective.losses import ImageDistance, squared_distance
from shards.core.errors import Failed, Refused


def image_distance(config: TrainConfig, device: torch.device) -> ImageDistance:
    """What `train.image_distance` names, on a device.

    Raises:
        Refused: LPIPS is asked for and not installed.
        Failed: its weights are neither here nor can be fetched.
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
        raise Failed(f"the weights of LPIPS cannot be had: {error}") from error
    network = network.to(device).eval().requires_grad_(False)

    def distance(images_BIHW: Tensor, others_BIHW: Tensor) -> Tensor:
        # It was trained on three channels in [-1, 1].
        pictures = (image.clamp(-1.0, 1.0).expand(-1, 3, -1, -1) for image in (images_BIHW, others_BIHW))
        return network(*pictures).flatten()

    return distance
