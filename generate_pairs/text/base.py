"""The interface of a text encoder: captions to one feature per token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """One encoded caption.

    Attributes:
        features_TE: (T, E) float16 on the CPU, at least one token.
        num_tokens: the caption's tokens before the cut to the encoder's `max_tokens`.
    """

    features_TE: Tensor
    num_tokens: int


class TextEncoder(ABC):
    """An encoder in eval mode.

    Attributes:
        name: as in the settings.
        sha256: hash of everything that determines the features: weights and tokenizer.
        max_tokens: longer captions are cut.
    """

    name: str
    sha256: str
    max_tokens: int

    @property
    @abstractmethod
    def dim(self) -> int:
        """E, the size of a feature."""

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> list[Encoded]:
        """Features of captions. Up to rounding, they do not depend on the other captions.

        Raises:
            Failed: a feature is too large for float16.
        """
