"""The handwritten digits for training the embedded teachers and for evaluation, with a fixed split.

1,797 images of 8 x 8 pixels: scikit-learn's copy of the UCI test set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_CLASSES = 10
TEST_IMAGES_PER_CLASS = 50

MAX_ROTATION = math.radians(8.0)
MAX_SCALING = 0.08
MAX_SHIFT = 0.2
"""Limits of the augmentation in both directions: radians, share of the size, pixels. Resampling blurs images of this
size: with these limits the copies are as far from the originals as unseen digits are (Frechet distance 0.10); with
shifts up to half a pixel they are three times as far."""


@dataclass(frozen=True)
class DigitsSplit:
    """Images float32 (N, 1, 8, 8) in [-1, 1], background -1; labels int64 (N,) in 0..9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits_split() -> DigitsSplit:
    """The 1,297 training and 500 test digits, 50 of each class in the test set, in the order of the data."""
    # Importing scikit-learn takes most of a second, and most commands do not need it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.float32).div(8.0).sub(1.0).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    test = held_out(labels, TEST_IMAGES_PER_CLASS)
    return DigitsSplit(images[~test], labels[~test], images[test], labels[test])


def held_out(labels_N: Tensor, count: int) -> Tensor:
    """Select `count` examples of every class, evenly spaced among the class's examples; not random.

    Of a class's n examples in order, the i-th is selected where floor(i * count / n) steps up. Neighbouring examples
    come from the same writer, so even spacing puts every writer's digits on both sides. Returns a mask (N,), bool.
    """
    selected = torch.zeros_like(labels_N, dtype=torch.bool)
    for label in labels_N.unique():
        members = torch.nonzero(labels_N == label).squeeze(1)
        filled = torch.arange(len(members) + 1) * count // len(members)
        selected[members[filled.diff() > 0]] = True
    return selected


def augmented(images: Tensor, labels: Tensor, copies: int, seed: int) -> tuple[Tensor, Tensor]:
    """The images, then `copies` complete copies of them, slightly rotated, scaled and shifted; and their labels.

    Images are (N, channels, height, width), float32 in [-1, 1], background -1; outside the image also -1.
    """
    generator = torch.Generator().manual_seed(seed)
    moved = [transformed(images, generator) for _ in range(copies)]
    return torch.cat([images, *moved]), labels.repeat(1 + copies)


def transformed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (N, channels, height, width) in [-1, 1] under its own random transform, with bilinear sampling."""
    transforms = random_transforms(len(images), images.shape[-1], generator)
    grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
    # grid_sample reads zero outside the image, so the background is shifted to zero for it.
    return F.grid_sample(images + 1.0, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1.0


def random_transforms(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Similarity transforms from output to input coordinates, (count, 2, 3), uniform within the limits.

    Coordinates run from -1 to 1 across an image of `size` pixels, as in torch's `affine_grid`.
    """
    angle, scaling, across, down = torch.rand(4, count, generator=generator) * 2.0 - 1.0
    angle, scaling = angle * MAX_ROTATION, 1.0 + scaling * MAX_SCALING
    shift = torch.stack([across, down], dim=1) * (MAX_SHIFT * 2.0 / size)
    cosine, sine = scaling * angle.cos(), scaling * angle.sin()
    rotation = torch.stack([torch.stack([cosine, -sine], dim=1), torch.stack([sine, cosine], dim=1)], dim=1)
    return torch.cat([rotation, shift.unsqueeze(2)], dim=2)
