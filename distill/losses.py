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
    """Scalars of one batch: the weighted sum that is minimised, and its parts, each a mean over what was asked."""

    total: Tensor
    parts: dict[str, Tensor]


def student_losses(
    student: Student, targets: Targets, tokens_BL: Tensor, labels_B: Tensor, config: TrainConfig
) -> Losses:
    """Losses of one batch.

    The token head learns every position that is asked, the continuous head too: where the split lies is decided at
    sampling time. A part whose weight is zero is not computed.
    """
    logits_BLV, embeddings_BLC = student(targets.states_BLC, targets.timestep_B, labels_B)
    asked_BL = targets.asked_BL
    parts: dict[str, Tensor] = {}
    if config.token_weight:
        parts["token_loss"] = F.cross_entropy(logits_BLV[asked_BL], tokens_BL[asked_BL])
    rows_BLC = student.tokenizer.embed(tokens_BL)
    if config.embedding_weight:
        parts["embedding_loss"] = F.mse_loss(embeddings_BLC[asked_BL], rows_BLC[asked_BL])
    if config.image_weight:
        sequence_BLC = torch.where(asked_BL[:, :, None], expected_rows(student, logits_BLV), rows_BLC)
        with torch.no_grad():
            images = student.tokenizer.decode(rows_BLC)
        parts["image_loss"] = F.mse_loss(student.tokenizer.decode(sequence_BLC), images)
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
