"""What the student is trained on: token cross-entropy, embedding distance, distance between decoded images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config import TrainConfig
from distill.student import Student
from distill.targets import Targets


@dataclass(frozen=True)
class Losses:
    """Scalars: the weighted sum that is minimised, and its parts, each a mean over what was asked."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Share:
    """Some of a batch's pairs. A loss is a mean over the whole batch, so the losses of its shares add up to it.

    Attributes:
        num_asked: positions asked for in the whole batch.
        num_pairs: pairs in the whole batch.
    """

    targets: Targets
    tokens_BL: Tensor
    labels_B: Tensor
    num_asked: int
    num_pairs: int


def shares(targets: Targets, tokens_BL: Tensor, labels_B: Tensor, count: int) -> list[Share]:
    """Cut a batch into `count` shares of consecutive pairs, as equal as they can be."""
    count = min(count, len(labels_B))
    num_asked, num_pairs = int(targets.asked_BL.sum()), len(labels_B)
    tensors = (targets.states_BLC, targets.timestep_B, targets.asked_BL, tokens_BL, labels_B)
    return [
        Share(Targets(states, timesteps, asked), tokens, labels, num_asked, num_pairs)
        for states, timesteps, asked, tokens, labels in zip(
            *(tensor.tensor_split(count) for tensor in tensors), strict=True
        )
    ]


def student_losses(student: Student, share: Share, config: TrainConfig) -> Losses:
    """What a share adds to the losses of its batch.

    The token head learns every position that is asked, the continuous head too: where the split lies is decided at
    sampling time. A part whose weight is zero is not computed.
    """
    targets, tokens_BL = share.targets, share.tokens_BL
    logits_BLV, embeddings_BLC = student(targets.states_BLC, targets.timestep_B, share.labels_B)
    asked_BL = targets.asked_BL
    parts: dict[str, Tensor] = {}
    if config.token_weight:
        missed = F.cross_entropy(logits_BLV[asked_BL], tokens_BL[asked_BL], reduction="sum")
        parts["token_loss"] = missed / share.num_asked
    rows_BLC = student.tokenizer.embed(tokens_BL)
    if config.embedding_weight:
        squares = (embeddings_BLC[asked_BL] - rows_BLC[asked_BL]).square()
        parts["embedding_loss"] = squares.mean(-1).sum() / share.num_asked
    if config.image_weight:
        sequence_BLC = torch.where(asked_BL[:, :, None], expected_rows(student, logits_BLV), rows_BLC)
        with torch.no_grad():
            images = student.tokenizer.decode(rows_BLC)
        squares = (student.tokenizer.decode(sequence_BLC) - images).square()
        parts["image_loss"] = squares.flatten(1).mean(-1).sum() / share.num_pairs
    weights = {
        "token_loss": config.token_weight,
        "embedding_loss": config.embedding_weight,
        "image_loss": config.image_weight,
    }
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return Losses(total, parts)


def expected_rows(student: Student, logits_BLV: Tensor) -> Tensor:
    """The mean codebook row under the token head, (B, L, C): a differentiable stand-in for the likeliest row."""
    return logits_BLV.softmax(-1) @ student.tokenizer.codebook_VC
