"""Sampling a student in one pass from noise, or in several passes through intermediate trajectory states.

Each image has its own noise and is the same at any batch size, up to the rounding of matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.student.model import StudentModel, TokenSequence
from generate_pairs.teachers.base import to_unit_range
from shards.core.errors import Refused
from shards.format.noise import gaussian_noise

SAMPLING_STREAM = 1
"""Noise stream for sampling; pairs use a different one, so no seed reproduces the noise of a training pair."""

BATCH_SIZE = 250
BATCH_PIXELS = 2**20
"""Maximum images and pixels of a batch; 2**20 pixels are 16 images of 256 x 256."""


def max_batch_size(image_shape: tuple[int, int, int]) -> int:
    """Images that are decoded in one batch; the decoder's memory grows with their pixels."""
    _, height, width = image_shape
    return max(1, min(BATCH_SIZE, BATCH_PIXELS // (height * width)))


def sampling_noise(seed: int, first: int, count: int, shape: tuple[int, int]) -> Tensor:
    """Noise (count, L, C) in float32 of `count` images from `first`; `shape` is (L, C)."""
    return torch.from_numpy(gaussian_noise(seed, first, count, shape, stream=SAMPLING_STREAM)).float()


@dataclass(frozen=True)
class ImageBatch:
    """Images with consecutive indices: pixels in [0, 1], tokens, labels."""

    first: int
    images_BIHW: Tensor
    tokens_BL: Tensor
    labels_B: Tensor


@torch.inference_mode()
def sample_sequence(
    student: StudentModel, noise_BLC: Tensor, labels_B: Tensor, timesteps: Sequence[int]
) -> TokenSequence:
    """Predict the sequence at each timestep in turn; between passes, later positions keep their noise.

    The student is in eval mode, and the noise has the codebook's dtype. Timesteps ascend from 0, as in (0, 5).
    """
    sequence = student.finish(noise_BLC, timesteps[0], labels_B)
    for timestep in timesteps[1:]:
        start = student.layout.starts[timestep]
        states_BLC = torch.cat([sequence.embeddings_BLC[:, :start], noise_BLC[:, start:]], dim=1)
        sequence = student.finish(states_BLC, timestep, labels_B)
    return sequence


def sample_images(
    student: StudentModel,
    labels: npt.NDArray[np.int64],
    seed: int,
    timesteps: Sequence[int],
    batch_size: int = BATCH_SIZE,
) -> Iterator[ImageBatch]:
    """Generate one image for each label, in batches; image i uses noise i of the seed.

    Raises:
        Refused: A label is out of range, or the timesteps are invalid.
    """
    check_labels(labels, student.num_classes)
    check_timesteps(timesteps, student)
    device = student.starts.device
    for first in range(0, len(labels), batch_size):
        labels_B = torch.from_numpy(labels[first : first + batch_size]).to(device)
        yield sample_batch(student, first, labels_B, seed, timesteps)


@torch.inference_mode()
def sample_batch(student: StudentModel, first: int, labels_B: Tensor, seed: int, timesteps: Sequence[int]) -> ImageBatch:
    """Generate the images from index `first` in one batch; labels and timesteps must be valid."""
    codebook_VC = student.tokenizer.codebook_VC
    shape = (student.layout.num_tokens, codebook_VC.shape[1])
    noise_BLC = sampling_noise(seed, first, len(labels_B), shape).to(codebook_VC)
    sequence = sample_sequence(student, noise_BLC, labels_B, timesteps)
    images = to_unit_range(student.tokenizer.decode(sequence.embeddings_BLC))
    return ImageBatch(first, images, sequence.tokens_BL, labels_B)


def first_timesteps(timesteps: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """The first `steps` of a student's timesteps; raises Refused if there are not as many."""
    if not 1 <= steps <= len(timesteps):
        trained = ",".join(map(str, timesteps))
        raise Refused(f"{steps} steps: this student was trained at timesteps {trained}, {len(timesteps)} in all")
    return timesteps[:steps]


def check_labels(labels: npt.NDArray[np.int64], num_classes: int) -> None:
    """Raise Refused for a label that is not between 0 and `num_classes` - 1."""
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise Refused(f"label {outside[0]}: this student has labels 0 to {num_classes - 1}")


def check_timesteps(timesteps: Sequence[int], student: StudentModel) -> None:
    """Raise Refused if timesteps do not ascend from 0 or are not below the number of AR steps."""
    num_steps = student.layout.num_steps
    ascends = bool(timesteps) and timesteps[0] == 0 and list(timesteps) == sorted(set(timesteps))
    if not ascends or timesteps[-1] >= num_steps:
        raise Refused(
            f"timesteps {list(timesteps)}: they must ascend from 0 and stay below {num_steps}; "
            f"this student was trained at {list(student.timesteps)}"
        )
