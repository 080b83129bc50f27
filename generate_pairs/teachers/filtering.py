"""Temperature, top-k and top-p, in each family's own convention: logits to log-probabilities.

Both families keep ties at the k-th largest logit. For top-p, VAR removes tokens in ascending order, LlamaGen in
descending order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingSettings:
    """How a teacher samples. The defaults (top_k 0, top_p 1) filter nothing in either family.

    The guidance scale is in the family's own convention (VAR: 0 is off, LlamaGen: 1); the temperature divides the
    logits, and only LlamaGen's sampler has one.
    """

    guidance_scale: float
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError if a setting is outside its range."""
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], 1 is off, got {self.top_p}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @classmethod
    def of(cls, teacher: Mapping[str, Any]) -> SamplingSettings:
        """The sampling settings in a teacher's record, which has other keys, too.

        Raises:
            KeyError: one of the four is missing.
            ValueError: a setting is outside its range.
        """
        return cls(**{field.name: teacher[field.name] for field in fields(cls)})


def filter_var(logits_NV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Filter as VAR's sampler does: top-k, then top-p on the remaining tokens.

    In ascending order, tokens are removed while the cumulative probability is at most 1 - top_p; the largest stays.
    top_p = 0 is off, as in the official code; so is 1, which would only remove tokens of probability zero.

    Returns:
        Normalised log-probabilities (..., V), float32, -inf for removed tokens.
    """
    logits_NV = _keep_top_k(logits_NV.float(), top_k)
    if 0 < top_p < 1:
        sorted_NV, order_NV = logits_NV.sort(dim=-1)
        removed_NV = sorted_NV.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        removed_NV[..., -1] = False
        logits_NV = _without(logits_NV, order_NV, removed_NV)
    return torch.log_softmax(logits_NV, dim=-1)


def filter_llamagen(logits_NV: Tensor, top_k: int, top_p: float, temperature: float) -> Tensor:
    """Filter as LlamaGen's sampler does: temperature, top-k, then top-p on the remaining tokens.

    In descending order, a token is removed if the cumulative probability before it exceeds top_p: the token that
    crosses the threshold stays. Temperatures below 1e-5 count as 1e-5.

    Returns:
        Normalised log-probabilities (..., V), float32, -inf for removed tokens.
    """
    logits_NV = _keep_top_k(logits_NV.float() / max(temperature, 1e-5), top_k)
    if top_p < 1:
        sorted_NV, order_NV = logits_NV.sort(dim=-1, descending=True)
        cumulative_NV = sorted_NV.softmax(dim=-1).cumsum(dim=-1)
        removed_NV = cumulative_NV.roll(1, dims=-1) > top_p
        removed_NV[..., 0] = False
        logits_NV = _without(logits_NV, order_NV, removed_NV)
    return torch.log_softmax(logits_NV, dim=-1)


def _keep_top_k(logits_NV: Tensor, top_k: int) -> Tensor:
    """Set logits below the k-th largest to -inf; ties with it are kept."""
    if top_k == 0 or top_k >= logits_NV.shape[-1]:
        return logits_NV
    smallest_N1 = logits_NV.topk(top_k, dim=-1).values[..., -1:]
    return logits_NV.masked_fill(logits_NV < smallest_N1, -torch.inf)


def _without(logits_NV: Tensor, order_NV: Tensor, removed_NV: Tensor) -> Tensor:
    """Set logits to -inf where `removed_NV`, in sorted order, is True."""
    return logits_NV.masked_fill(removed_NV.scatter(-1, order_NV, removed_NV), -torch.inf)
