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

from distill.student import Sequence as TokenSequence
from distill.student import Student
from generate_pairs.teachers.base import to_unit_range
from shards.errors import Refused
from shards.noise import gaussian_noise

SAMPLING_STREAM = 1
"""Noise for sampling comes from another stream than the pairs', so an image is never a training pair by its seed."""


@dataclass(frozen=True)
class ImageBatch:
    """Images of consecutive indices: pixels in [0, 1], tokens, labels."""

    first: int
    images_BIHW: Tensor
    tokens_BL: Tensor
    labels_B: Tensor


@torch.inference_mode()
def sample_sequence(
    student: Student, noise_BLC: Tensor, labels_B: Tensor, timesteps: Sequence[int]
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
    student: Student,
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
    device, codebook_VC = student.starts.device, student.tokenizer.codebook_VC
    shape = (student.layout.num_tokens, codebook_VC.shape[1])
    for first in range(0, len(labels), batch_size):
        labels_B = torch.from_numpy(labels[first : first + batch_size]).to(device)
        noise = gaussian_noise(seed, first, len(labels_B), shape, stream=SAMPLING_STREAM)
        noise_BLC = torch.from_numpy(noise).to(device, codebook_VC.dtype)
        sequence = sample_sequence(student, noise_BLC, labels_B, timesteps)
        with torch.inference_mode():
            images = to_unit_range(student.tokenizer.decode(sequence.embeddings_BLC))
        yield ImageBatch(first, images, sequence.tokens_BL, labels_B)


def check_labels(labels: npt.NDArray[np.int64], num_classes: int) -> None:
    """Refuse labels outside the classes.

    Raises:
        Refused: names the first one.
    """
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise Refused(f"label {outside[0]}: this student has classes 0 to {num_classes - 1}")


def check_timesteps(timesteps: Sequence[int], student: Student) -> None:
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
