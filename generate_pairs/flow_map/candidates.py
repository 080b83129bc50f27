"""The codebook rows that are possible at each position, stored for the two products that the flow map needs.

Either all positions share the full codebook, or each position gathers the few rows that its filter keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Candidates(Protocol):
    """K codebook rows for each of N positions, with features (c, |c|^2, 1): F = C + 2 numbers per row."""

    def scores(self, bias_NK: Tensor, query_NF: Tensor, out_NK: Tensor) -> None:
        """Write bias + <query, features> to `out_NK`."""
        ...

    def moments(self, weights_NK: Tensor) -> Tensor:
        """sum_k weight_k features_k, (N, F): the weighted sums of c, |c|^2 and 1."""
        ...

    def rows(self, index_N: Tensor) -> Tensor:
        """c of one candidate per position: (N, C)."""
        ...

    def keep(self, positions_M: Tensor) -> Candidates:
        """The candidates of these positions only."""
        ...


@dataclass(frozen=True)
class FullCodebook:
    """The full codebook for every position, K = V: its rows, and their features as contiguous columns."""

    codebook_VC: Tensor
    features_FV: Tensor

    @classmethod
    def of(cls, codebook_VC: Tensor) -> FullCodebook:
        return cls(codebook_VC, features(codebook_VC).T.contiguous())

    def to(self, device: torch.device | str) -> FullCodebook:
        return FullCodebook(self.codebook_VC.to(device), self.features_FV.to(device))

    def scores(self, bias_NK: Tensor, query_NF: Tensor, out_NK: Tensor) -> None:
        torch.addmm(bias_NK, query_NF, self.features_FV, out=out_NK)

    def moments(self, weights_NK: Tensor) -> Tensor:
        # The transposed product is up to four times as fast on CPUs.
        return (self.features_FV @ weights_NK.T).T

    def rows(self, index_N: Tensor) -> Tensor:
        return F.embedding(index_N, self.codebook_VC)

    def keep(self, positions_M: Tensor) -> FullCodebook:
        return self


@dataclass(frozen=True)
class GatheredRows:
    """For each position its own K rows, relative to the most probable of them."""

    features_NFK: Tensor

    def scores(self, bias_NK: Tensor, query_NF: Tensor, out_NK: Tensor) -> None:
        torch.baddbmm(bias_NK[:, None], query_NF[:, None], self.features_NFK, out=out_NK[:, None])

    def moments(self, weights_NK: Tensor) -> Tensor:
        return torch.bmm(weights_NK[:, None], self.features_NFK.transpose(1, 2)).squeeze(1)

    def rows(self, index_N: Tensor) -> Tensor:
        return self.features_NFK[torch.arange(len(index_N), device=index_N.device), :-2, index_N]

    def keep(self, positions_M: Tensor) -> GatheredRows:
        return GatheredRows(self.features_NFK[positions_M])


def gather_rows(codebook_VC: Tensor, support_NK: Tensor, log_p_NK: Tensor) -> GatheredRows:
    """Gather d_j = c_j - c_m, with m the most probable candidate: close rows keep all their digits."""
    rows_NKC = F.embedding(support_NK, codebook_VC)
    top_N11 = first_argmax(log_p_NK)[:, None, None]
    rows_NKC = rows_NKC - rows_NKC.gather(1, top_N11.expand(-1, 1, rows_NKC.shape[2]))
    return GatheredRows(features(rows_NKC).transpose(1, 2).contiguous())


def gather_support(log_p_NV: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The possible tokens of each position, in ascending order, and their log-probabilities, -inf if impossible.

    Both are (N, K), padded with token 0 and -inf; K = `size` is at least the largest number of possible tokens.
    """
    position, token = (log_p_NV > -torch.inf).nonzero(as_tuple=True)
    counts_N = torch.bincount(position, minlength=len(log_p_NV))
    column = torch.arange(len(position), device=position.device) - (counts_N.cumsum(0) - counts_N)[position]
    support_NK = torch.zeros(len(log_p_NV), size, dtype=torch.int64, device=position.device)
    support_NK[position, column] = token
    log_p_NK = log_p_NV.new_full(support_NK.shape, -torch.inf)
    log_p_NK[position, column] = log_p_NV[position, token]
    return support_NK, log_p_NK


def features(rows: Tensor) -> Tensor:
    """(..., C) -> (..., C + 2): c, |c|^2, 1."""
    return torch.cat((rows, rows.square().sum(dim=-1, keepdim=True), torch.ones_like(rows[..., :1])), dim=-1)


def first_argmax(scores_NK: Tensor, block: int = 64) -> Tensor:
    """Index of the largest number of each row, the lowest on ties; wide rows are split into blocks for speed."""
    num_rows, width = scores_NK.shape
    if width < 8 * block or width % block:
        return scores_NK.max(dim=1).indices
    blocks_NJW = scores_NK.view(num_rows, width // block, block)
    best_N1 = blocks_NJW.amax(dim=2).max(dim=1, keepdim=True).indices
    inside_N1W = blocks_NJW.gather(1, best_N1[:, :, None].expand(-1, 1, block))
    return (best_N1 * block + inside_N1W.max(dim=2).indices).squeeze(1)
