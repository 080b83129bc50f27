"""Baselines: onestep* (independent positions) and skip-n (without the last AR steps).

Both use one table, the frequency of every token at every position among the training pairs of a class.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from generate_pairs.teachers.base import Teacher
from generate_pairs.trajectory import draw
from shards.core.errors import Refused


class TokenFrequencies:
    """Counts tokens by class and position, batch after batch, in a dense table K x L x V of int32."""

    def __init__(self, num_classes: int, num_tokens: int, vocab_size: int) -> None:
        self.counts_KLV = torch.zeros(num_classes, num_tokens, vocab_size, dtype=torch.int32)

    def add(self, tokens_BL: Tensor, labels_B: Tensor) -> None:
        """Count a batch: tokens (B, L) and labels (B,), integers.

        Raises:
            ValueError: a shape, token or label does not fit the table.
        """
        num_classes, num_tokens, vocab_size = self.counts_KLV.shape
        if tokens_BL.shape != (len(labels_B), num_tokens):
            raise ValueError(f"tokens must be ({len(labels_B)}, {num_tokens}), got {tuple(tokens_BL.shape)}")
        _check_range("token", tokens_BL, vocab_size)
        _check_range("label", labels_B, num_classes)
        rows_BL = labels_B.long().unsqueeze(1) * num_tokens + torch.arange(num_tokens)
        cells = (rows_BL * vocab_size + tokens_BL).flatten()
        self.counts_KLV.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))

    def probabilities(self) -> Tensor:
        """P[class, position, token], (K, L, V) float32; a class without pairs gets the marginals of all pairs.

        Raises:
            ValueError: no pair was counted.
        """
        total_LV = self.counts_KLV.sum(dim=0)
        if not total_LV.any():
            raise ValueError("token frequencies of no pairs are not defined: add at least one batch first")
        # Class by class: for all ImageNet classes, one more copy of the table takes tens of gigabytes.
        P_KLV = torch.empty(self.counts_KLV.shape)
        for counts_LV, P_LV in zip(self.counts_KLV, P_KLV, strict=True):
            known_LV = counts_LV if counts_LV[0].any() else total_LV
            P_LV.copy_(known_LV / known_LV.sum(dim=1, keepdim=True))
        return P_KLV


def sample_onestep_star(P_KLV: Tensor, labels_B: Tensor, uniform_BL: Tensor) -> Tensor:
    """onestep*: tokens (B, L) int64, each position drawn independently from its frequencies given the class.

    This is the best result of one step without a map from noise to sequence. Labels are int64; each draw uses a number
    between 0 and 1, float64.
    """
    pairs = zip(labels_B.tolist(), uniform_BL, strict=True)
    return torch.stack([draw(P_KLV[label], uniform_L) for label, uniform_L in pairs])


@runtime_checkable
class SumOfSteps(Protocol):
    """A tokenizer whose latent map is a sum over AR steps, as VAR's is over its scales."""

    def f_hat(self, embeddings_BPC: Tensor) -> Tensor:
        """Embeddings (B, P, C) of the first AR steps to the latent map (B, C, h, w) they add up to."""

    def decode_f_hat(self, f_hat_BChw: Tensor) -> Tensor:
        """A latent map to images (B, channels, height, width), not clamped."""


def skip_n_fill(teacher: Teacher) -> str:
    """What replaces the steps that skip-n leaves out: "nothing", or tokens drawn from their "marginals"."""
    return "nothing" if isinstance(teacher.tokenizer, SumOfSteps) else "marginals"


def sample_skip_n(
    teacher: Teacher, tokens_BL: Tensor, n: int, P_KLV: Tensor, labels_B: Tensor, uniform_BL: Tensor
) -> Tensor:
    """skip-n: images (B, channels, height, width) of the teacher's first S - n AR steps, about -1 to 1, not clamped.

    `skip_n_fill` describes the rest. The teacher's own tokens of the last n steps are ignored. `P_KLV`, int64 labels and
    numbers between 0 and 1 (B, L) float64 are for the fill "marginals"; only filled positions use their number.

    Raises:
        Refused: n is not between 1 and S - 1.
    """
    num_steps = teacher.layout.num_steps - n
    if not 0 < num_steps < teacher.layout.num_steps:
        raise Refused(
            f"skip-{n} does not exist: this teacher has {teacher.layout.num_steps} AR steps, so n is 1 to "
            f"{teacher.layout.num_steps - 1}"
        )
    tokenizer = teacher.tokenizer
    num_kept = teacher.layout.starts[num_steps]
    kept_BP = tokens_BL[:, :num_kept]
    if isinstance(tokenizer, SumOfSteps):
        return tokenizer.decode_f_hat(tokenizer.f_hat(tokenizer.embed(kept_BP)))
    filled = sample_onestep_star(P_KLV[:, num_kept:], labels_B, uniform_BL[:, num_kept:])
    return tokenizer.decode(tokenizer.embed(torch.cat([kept_BP, filled], dim=1)))


def _check_range(what: str, numbers: Tensor, limit: int) -> None:
    if len(numbers) == 0:
        return
    smallest, largest = int(numbers.min()), int(numbers.max())
    if smallest < 0 or largest >= limit:
        raise ValueError(f"{what} numbers must be in 0..{limit - 1}, got {smallest} to {largest}")
