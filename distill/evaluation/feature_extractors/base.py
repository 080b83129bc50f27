"""The interface of feature extractors, which evaluation alone uses.

Other packages add extractors by an entry point of the group `tokenleap.features`: a callable without arguments that
returns a `FeatureExtractor`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

ENTRY_POINTS = "tokenleap.features"


class FeatureExtractor(Protocol):
    """A frozen network that evaluation looks through; one that is an `nn.Module` goes to the evaluation's device."""

    @property
    def dim(self) -> int:
        """Numbers in one image's features, F."""

    @property
    def knows_labels(self) -> bool:
        """Whether class k of its probabilities is the teacher's label k, so that class accuracy means something."""

    def __call__(self, images_BIHW: Tensor) -> Tensor:
        """Images (B, channels, height, width) in [0, 1] to features (B, F), float32."""

    def probabilities(self, features_BF: Tensor) -> Tensor | None:
        """Features (B, F) to class probabilities (B, K), float32; None where it tells no classes."""


@torch.inference_mode()
def extract(extractor: FeatureExtractor, images_BIHW: Tensor, batch_size: int = 500) -> Tensor:
    """Features (B, F) of any number of images in [0, 1], `batch_size` at a time."""
    return torch.cat([extractor(batch) for batch in images_BIHW.split(batch_size)])
