"""The interface of feature extractors. Only evaluation uses them.

Other packages register extractors as an entry point of the group `tokenleap.features`: a callable without arguments that
returns a `FeatureExtractor`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

ENTRY_POINTS = "tokenleap.features"


class FeatureExtractor(Protocol):
    """A frozen network that computes features; an `nn.Module` is moved to the evaluation's device."""

    @property
    def dim(self) -> int:
        """Length F of one image's features."""

    @property
    def knows_labels(self) -> bool:
        """Whether class k of its probabilities is the teacher's label k, so that class accuracy is meaningful."""

    def __call__(self, images_BIHW: Tensor) -> Tensor:
        """Images (B, channels, height, width) in [0, 1] to features (B, F), float32."""

    def probabilities(self, features_BF: Tensor) -> Tensor | None:
        """Features (B, F) to class probabilities (B, K), float32; None if it computes no classes."""


@torch.inference_mode()
def extract(extractor: FeatureExtractor, images_BIHW: Tensor, batch_size: int = 500) -> Tensor:
    """Features (B, F) of any number of images in [0, 1], `batch_size` at a time."""
    return torch.cat([extractor(batch) for batch in images_BIHW.split(batch_size)])
