"""The losses: token cross-entropy, embedding distance, and distance between decoded images."""

from __future__ import annotations

from collections import Counter
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
"""Maps two batches of images, nominally in [-1, 1], to one distance for each pair of images, (B,)."""


@dataclass(frozen=True)
class Losses:
    """Scalars: the weighted sum that is minimised, and its parts. Each part is a mean over its targets."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class BatchTargets:
    """Numbers of targets in a global batch, over which losses are averaged."""

    num_pairs: int
    positions: Mapping[int, int]
    """Number of target positions by timestep."""

    @property
    def num_positions(self) -> int:
        return sum(self.positions.values())

    @classmethod
    def of(cls, timestep_B: npt.NDArray[np.int64], layout: TokenLayout) -> BatchTargets:
        """Count the targets of pairs at these timesteps."""
        counts = sorted(Counter(timestep_B.tolist()).items())
        positions = {timestep: count * (layout.num_tokens - layout.starts[timestep]) for timestep, count in counts}
        return cls(len(timestep_B), positions)


@dataclass(frozen=True)
class MicroBatch:
    """Some of the pairs of a batch. Losses are means over the whole batch, so those of its micro-batches add up."""

    targets: Targets
    tokens_BL: Tensor
    labels_B: Tensor

    def split(self, count: int) -> list[MicroBatch]:
        """At most `count` micro-batches of consecutive pairs, as equal as possible; none is empty."""
        parts = np.array_split(np.arange(len(self.labels_B)), max(1, count))
        return [self._select(slice(part[0], part[-1] + 1)) for part in parts if len(part)]

    def split_by_size(self, size: int) -> list[MicroBatch]:
        """As `split`, into the fewest micro-batches of at most `size` pairs."""
        return self.split(-(-len(self.labels_B) // size))

    def every(self, first: int, stride: int) -> MicroBatch:
        """The pairs `first`, `first + stride`, `first + 2 * stride`, ..."""
        return self._select(slice(first, None, stride))

    def _select(self, rows: slice) -> MicroBatch:
        targets = self.targets
        return MicroBatch(
            Targets(targets.states_BLC[rows], targets.timestep_B[rows], targets.target_mask_BL[rows]),
            self.tokens_BL[rows],
            self.labels_B[rows],
        )


def squared_distance(images_BIHW: Tensor, others_BIHW: Tensor) -> Tensor:
    """Mean squared difference of each pair of images, (B,)."""
    return (images_BIHW - others_BIHW).square().flatten(1).mean(-1)


def student_losses(
    student: Student,
    micro_batch: MicroBatch,
    batch_targets: BatchTargets,
    config: TrainConfig,
    image_distance: ImageDistance = squared_distance,
) -> Losses:
    """The contribution of a micro-batch to the losses of its batch.

    Both heads learn every target position, because the split can change when sampling. A loss with weight zero is not
    computed. Each head also reports its loss at each timestep of the batch, as `token_loss_at_5`.
    """
    targets, tokens_BL = micro_batch.targets, micro_batch.tokens_BL
    logits_BLV, embeddings_BLC = student(targets.states_BLC, targets.timestep_B, micro_batch.labels_B)
    target_mask_BL = targets.target_mask_BL
    timestep_N = targets.timestep_B[:, None].expand_as(tokens_BL)[target_mask_BL]
    parts: dict[str, Tensor] = {}
    if config.token_weight:
        loss_N = F.cross_entropy(logits_BLV[target_mask_BL], tokens_BL[target_mask_BL], reduction="none")
        parts |= _means("token_loss", loss_N, timestep_N, batch_targets)
    rows_BLC = student.tokenizer.embed(tokens_BL)
    if config.embedding_weight:
        squares_NC = (embeddings_BLC[target_mask_BL] - rows_BLC[target_mask_BL]).square()
        parts |= _means("embedding_loss", squares_NC.mean(-1), timestep_N, batch_targets)
    if config.image_weight:
        sequence_BLC = torch.where(
            target_mask_BL[:, :, None], decoder_inputs(student, logits_BLV, embeddings_BLC), rows_BLC
        )
        with torch.no_grad():
            images = student.tokenizer.decode(rows_BLC)
        distance_B = image_distance(student.tokenizer.decode(sequence_BLC), images)
        parts["image_loss"] = distance_B.sum() / batch_targets.num_pairs
    names = [name for name in ("token", "embedding", "image") if f"{name}_loss" in parts]
    total = torch.stack([getattr(config, f"{name}_weight") * parts[f"{name}_loss"] for name in names]).sum()
    return Losses(total, parts)


def _means(name: str, loss_N: Tensor, timestep_N: Tensor, batch_targets: BatchTargets) -> dict[str, Tensor]:
    """Contributions to a head's mean loss over all target positions, and over those of each timestep."""
    by_timestep = {
        f"{name}_at_{timestep}": loss_N.detach()[timestep_N == timestep].sum() / count
        for timestep, count in batch_targets.positions.items()
    }
    return {name: loss_N.sum() / batch_targets.num_positions, **by_timestep}


def decoder_inputs(student: Student, logits_BLV: Tensor, embeddings_BLC: Tensor) -> Tensor:
    """Differentiable decoder inputs (B, L, C).

    AR steps below the split use the mean codebook row under the token head, a differentiable replacement of the most
    likely row. Later AR steps use the output of the continuous head.
    """
    split = student.layout.starts[student.split]
    expected_BLC = logits_BLV[:, :split].softmax(-1) @ student.tokenizer.codebook_VC
    return torch.cat([expected_BLC, embeddings_BLC[:, split:]], dim=1)
