"""The student's model: one network pass from a state of the trajectory to the whole sequence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenSequence:
    """A finished sequence: what the decoder reads, and the tokens it stands for."""

    embeddings_BLC: Tensor
    tokens_BL: Tensor


def nearest_rows(embeddings_BLC: Tensor, codebook_VC: Tensor) -> Tensor:
    """Tokens (B, L) of the codebook rows nearest to continuous embeddings."""
    affinity_BLV = embeddings_BLC @ codebook_VC.T - 0.5 * codebook_VC.square().sum(1)
    return affinity_BLV.argmax(-1)
