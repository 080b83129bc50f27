"""The interface of a text encoder: captions to one feature per token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """The features (T, E) of a caption, float16 on the CPU, T > 0; and its tokens before the cut to `max_tokens`."""

    features_TE: Tensor
    num_tokens: int


@dataclass
class TextEncoder(ABC):
    """An encoder in eval mode, with the hash of its weights and tokenizer. Captions are cut to `max_tokens`."""

    name: str
    sha256: str
    model: Any
    tokenizer: Any
    max_tokens: int

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> list[Encoded]:
        """Features of captions. Up to rounding, they do not depend on the other captions.

        Raises:
            Failed: a feature is too large for float16.
        """
