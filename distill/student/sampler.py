"""Sampling a student: one pass from noise, or several through states of the trajectory in between.

Each image has its own noise and is the same at any batch size (up to the rounding of matrix products).
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
"""Noise for sampling comes from another stream than the pairs', so an image is never a training pair by its seed."""


BATCH_SIZE = 250
BATCH_PIXELS = 2**20
"""Most images, and most pixels, that are made at once: 16 images of 256 x 256."""


def most_at_once(image_shape: tuple[int, int, int]) -> int:
    """Images that are made in one batch: the decoder's memory grows with their pixels."""
    _, height, width = image_shape
    return max(1, min(BATCH_SIZE, BATCH_PIXELS // (height * width)))


def sampling_noise(seed: int, first: int, count: int, shape: tuple[int, int]) -> Tensor:
    """Noise (count, L, C) float32 of images `first` onwards; `shape` is (L, C)."""
    return torch.from_numpy(gaussian_noise(seed, first, count, shape, stream=SAMPLING_STREAM)).float()


@dataclass(frozen=True)
class ImageBatch:
    """Images of consecutive indices: pixels in [0, 1], tokens, labels."""

    first: int
    images_BIHW: Tensor
    tokens_BL: Tensor
    labels_B: Tensor


@torch.inference_mode()
def sample_sequence(
    student: StudentModel, noise_BLC: Tensor, labels_B: Tensor, timesteps: Sequence[int]
) -> TokenSequence:
    """Finish the sequence at each timestep in turn; between two passes, later positions keep their own noise.

    Args:
        student: in eval mode.
        noise_BLC: of the codebook's dtype.
        labels_B: int64.
        timesteps: ascending from 0, as in {0} for one step or {0, k} for two.
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
    batch_size: int = 250,
) -> Iterator[ImageBatch]:
    """Images of the given labels, batch by batch; image i takes noise i of the seed.

    Raises:
        Refused: labels outside the student's classes, or timesteps it cannot start from.
    """
    check_labels(labels, student.num_classes)
    check_timesteps(timesteps, student)
    device = student.starts.device
    for first in range(0, len(labels), batch_size):
        labels_B = torch.from_numpy(labels[first : first + batch_size]).to(device)
        yield student_images(student, first, labels_B, seed, timesteps)


@torch.inference_mode()
def student_images(
    student: StudentModel, first: int, labels_B: Tensor, seed: int, timesteps: Sequence[int]
) -> ImageBatch:
    """Images `first` onwards of these labels, in one batch; labels and timesteps are the student's own."""
    codebook_VC = student.tokenizer.codebook_VC
    shape = (student.layout.num_tokens, codebook_VC.shape[1])
    noise_BLC = sampling_noise(seed, first, len(labels_B), shape).to(codebook_VC)
    sequence = sample_sequence(student, noise_BLC, labels_B, timesteps)
    images = to_unit_range(student.tokenizer.decode(sequence.embeddings_BLC))
    return ImageBatch(first, images, sequence.tokens_BL, labels_B)


def first_timesteps(timesteps: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """The first `steps` of the timesteps that a student was trained at.

    Raises:
        Refused: it was trained at fewer.
    """
    if not 1 <= steps <= len(timesteps):
        known = ",".join(map(str, timesteps))
        raise Refused(
            f"{steps} steps: this student was trained at timesteps {known}, {len(timesteps)} in all"
        )
    return timesteps[:steps]


def check_labels(labels: npt.NDArray[np.int64], num_classes: int) -> None:
    """Refuse labels outside the classes.

    Raises:
        Refused: names the first one.
    """
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise Refused(f"label {outside[0]}: this student knows labels 0 to {num_classes - 1}")


def check_timesteps(timesteps: Sequence[int], student: StudentModel) -> None:
    """Refuse timesteps that are not ascending from 0 or lie outside the AR steps.

    Raises:
        Refused: says what would be right.
    """
    num_steps = student.layout.num_steps
    if (
        not timesteps
        or timesteps[0] != 0
        or list(timesteps) != sorted(set(timesteps))
        or timesteps[-1] >= num_steps
    ):
        raise Refused(
            f"timesteps {list(timesteps)}: they ascend from 0 and stay below {num_steps}; "
            f"this student was trained at {list(student.timesteps)}"
        )
