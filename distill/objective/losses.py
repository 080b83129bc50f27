"""What the student is trained on: token cross-entropy, embedding distance, distance between decoded images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config import TrainConfig
from distill.objective.targets import Targets
from distill.student.student import Student
from generate_pairs.teachers.base import TokenLayout

ImageDistance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images, nominally in [-1, 1], to how far each pair of them is apart, (B,)."""


@dataclass(frozen=True)
class Losses:
    """Scalars: the weighted sum that is minimised, and its parts, each a mean over what was asked."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class BatchTargets:
    """What is asked of a student in a whole batch, the pairs of all processes: losses are means over it.

    Attributes:
        num_pairs: pairs in the batch.
        positions: how many tokens its pairs are asked for, by the timestep at which they are shown.
    """

    num_pairs: int
    positions: Mapping[int, int]

    @property
    def num_positions(self) -> int:
        return sum(self.positions.values())

    @classmethod
    def of(cls, timestep_B: npt.NDArray[np.int64], layout: TokenLayout) -> BatchTargets:
        """Of pairs that are shown at these timesteps."""
        found, counts = np.unique(timestep_B, return_counts=True)
        pairs = dict(zip(found.tolist(), counts.tolist(), strict=True))
        return cls(
            len(timestep_B), {t: count * (layout.num_tokens - layout.starts[t]) for t, count in pairs.items()}
        )


@dataclass(frozen=True)
class MicroBatch:
    """Some of a batch's pairs. A loss is a mean over the whole batch, so the losses of its shares add up to it."""

    targets: Targets
    tokens_BL: Tensor
    labels_B: Tensor

    def split(self, count: int) -> list[MicroBatch]:
        """`count` shares of consecutive pairs, as equal as they can be; none is empty."""
        targets, count = self.targets, min(count, len(self.labels_B))
        tensors = (
            targets.states_BLC,
            targets.timestep_B,
            targets.target_mask_BL,
            self.tokens_BL,
            self.labels_B,
        )
        return [
            MicroBatch(Targets(states, timesteps, batch_targets), tokens, labels)
            for states, timesteps, batch_targets, tokens, labels in zip(
                *(tensor.tensor_split(count) for tensor in tensors), strict=True
            )
        ]

    def every(self, first: int, stride: int) -> MicroBatch:
        """The pairs `first`, `first + stride` and so on."""
        chosen, targets = slice(first, None, stride), self.targets
        return MicroBatch(
            Targets(targets.states_BLC[chosen], targets.timestep_B[chosen], targets.target_mask_BL[chosen]),
            self.tokens_BL[chosen],
            self.labels_B[chosen],
        )


def squared_distance(images_BIHW: Tensor, others_BIHW: Tensor) -> Tensor:
    """Mean squared difference of each image's numbers, (B,)."""
    return (images_BIHW - others_BIHW).square().flatten(1).mean(-1)


def student_losses(
    student: Student,
    micro_batch: MicroBatch,
    batch_targets: BatchTargets,
    config: TrainConfig,
    image_distance: ImageDistance = squared_distance,
) -> Losses:
    """What a share adds to the losses of its batch.

    The token head learns every position that is asked, the continuous head too: where the split lies is decided at
    sampling time. A part whose weight is zero is not computed. Heads also tell their loss at each timestep that the
    batch asks for, as `token_loss_at_5`.
    """
    targets, tokens_BL = micro_batch.targets, micro_batch.tokens_BL
    logits_BLV, embeddings_BLC = student(targets.states_BLC, targets.timestep_B, micro_batch.labels_B)
    target_mask_BL = targets.target_mask_BL
    timestep_N = targets.timestep_B[:, None].expand_as(tokens_BL)[target_mask_BL]
    parts: dict[str, Tensor] = {}
    if config.token_weight:
        missed_N = F.cross_entropy(logits_BLV[target_mask_BL], tokens_BL[target_mask_BL], reduction="none")
        parts |= _means("token_loss", missed_N, timestep_N, batch_targets)
    rows_BLC = student.tokenizer.embed(tokens_BL)
    if config.embedding_weight:
        squares_NC = (embeddings_BLC[target_mask_BL] - rows_BLC[target_mask_BL]).square()
        parts |= _means("embedding_loss", squares_NC.mean(-1), timestep_N, batch_targets)
    if config.image_weight:
        sequence_BLC = torch.where(
            target_mask_BL[:, :, None], answered_rows(student, logits_BLV, embeddings_BLC), rows_BLC
        )
        with torch.no_grad():
            images = student.tokenizer.decode(rows_BLC)
        distance_B = image_distance(student.tokenizer.decode(sequence_BLC), images)
        parts["image_loss"] = distance_B.sum() / batch_targets.num_pairs
    weights = {
        "token_loss": config.token_weight,
        "embedding_loss": config.embedding_weight,
        "image_loss": config.image_weight,
    }
    total = torch.stack([weight * parts[name] for name, weight in weights.items() if name in parts]).sum()
    return Losses(total, parts)


def _means(name: str, loss_N: Tensor, timestep_N: Tensor, batch_targets: BatchTargets) -> dict[str, Tensor]:
    """What a share adds to a head's mean loss over all positions that are asked, and over those of each timestep."""
    at = {
        f"{name}_at_{timestep}": loss_N.detach()[timestep_N == timestep].sum() / count
        for timestep, count in batch_targets.positions.items()
    }
    return {name: loss_N.sum() / batch_targets.num_positions, **at}


def answered_rows(student: Student, logits_BLV: Tensor, embeddings_BLC: Tensor) -> Tensor:
    """What the student's decoder would read, (B, L, C), differentiable: in AR steps below the split the mean codebook row
    under the token head, which stands in for the likeliest one, and after it the continuous head's answer.
    """
    split = student.layout.starts[student.split]
    expected_BLC = logits_BLV[:, :split].softmax(-1) @ student.tokenizer.codebook_VC
    return torch.cat([expected_BLC, embeddings_BLC[:, split:]], dim=1)
