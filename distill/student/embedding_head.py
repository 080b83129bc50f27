"""The continuous head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.teachers.meta_device import normal_rows


class EmbeddingHead(nn.Module):
    """Map hidden states to embeddings: linear(LN(h) (1 + scale) + shift); the class embedding is added to both."""

    def __init__(self, width: int, codebook_dim: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(normal_rows(2, width))
        self.linear = nn.Linear(width, codebook_dim)

    def forward(self, h_BLD: Tensor, condition_B1D: Tensor) -> Tensor:
        shift_B1D, scale_B1D = (self.scale_shift_table[:, None, None] + condition_B1D).unbind()
        normalised_BLD = F.layer_norm(h_BLD, h_BLD.shape[-1:], eps=1e-6)
        return self.linear(normalised_BLD * (1 + scale_B1D) + shift_B1D)
