"""Temperature, top-k and top-p, each family's own convention: logits -> log-probabilities.

Both families keep ties at the k-th largest logit; they cut the tail by top-p from opposite ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingSettings:
    """How a teacher samples. The defaults filter nothing, whatever the family.

    Attributes:
        guidance_scale: Classifier-free guidance, in the family's own convention (VAR: 0 is off, LlamaGen: 1).
        top_k: Keep the k likeliest tokens; 0 is off.
        top_p: Keep the likeliest tokens up to this mass; 1 is off.
        temperature: Divides the logits; only LlamaGen's sampler has one.
    """

    guidance_scale: float
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError on a setting outside its range."""
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], 1 being off, got {self.top_p}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @classmethod
    def of(cls, teacher: Mapping[str, Any]) -> SamplingSettings:
        """The sampling settings among all that is recorded of a teacher; its other keys say other things.

        Raises:
            KeyError: one of the four is not recorded.
            ValueError: a setting is outside its range.
        """
        return cls(**{field.name: teacher[field.name] for field in fields(cls)})


def filter_var(logits_NV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Filters as VAR's sampler does: top-k, then top-p on what is left.

    In ascending order, tokens are removed while the cumulative probability is at most 1 - top_p; the
    largest stays.

    Args:
        logits_NV: Guided logits, any leading shape; left as they are.
        top_k: 0 is off; above V it is V.
        top_p: 0 is off in the official convention; 1 would only remove what has probability zero: off too.

    Returns:
        Normalised log-probabilities, float32, -inf where removed.
    """
    logits_NV = _keep_top_k(logits_NV.float(), top_k)
    if 0 < top_p < 1:
        sorted_NV, order_NV = logits_NV.sort(dim=-1)
        removed_NV = sorted_NV.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        removed_NV[..., -1] = False
        logits_NV = _without(logits_NV, order_NV, removed_NV)
    return torch.log_softmax(logits_NV, dim=-1)


def filter_llamagen(logits_NV: Tensor, top_k: int, top_p: float, temperature: float) -> Tensor:
    """Filters as LlamaGen's sampler does: temperature, top-k, then top-p on what is left.

    In descending order, tokens are removed where the cumulative probability before them exceeds top_p: the
    token that crosses the threshold stays.

    Args:
        logits_NV: Guided logits, any leading shape; left as they are.
        top_k: 0 is off; above V it is V.
        top_p: 1 is off.
        temperature: Divides the logits, not below 1e-5.

    Returns:
        Normalised log-probabilities, float32, -inf where removed.
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
    """-inf below the k-th largest logit; ties with it are kept."""
    if top_k == 0 or top_k >= logits_NV.shape[-1]:
        return logits_NV
    smallest_N1 = logits_NV.topk(top_k, dim=-1).values[..., -1:]
    return logits_NV.masked_fill(logits_NV < smallest_N1, -torch.inf)


def _without(logits_NV: Tensor, order_NV: Tensor, removed_NV: Tensor) -> Tensor:
    """-inf where `removed_NV`, given in sorted order, says so."""
    return logits_NV.masked_fill(removed_NV.scatter(-1, order_NV, removed_NV), -torch.inf)
