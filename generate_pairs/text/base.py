"""What a text encoder is: captions in, a feature for each of their tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """One caption.

    Attributes:
        features_TE: (T, E) float16 on the CPU, at least one token.
        num_tokens: that it had before it was cut to the encoder's `max_tokens`.
    """

    features_TE: Tensor
    num_tokens: int


class TextEncoder(ABC):
    """An encoder in eval mode.

    Attributes:
        name: as in the settings.
        sha256: of all that determines its features, weights and tokenizer.
        max_tokens: longer captions are cut.
    """

    name: str
    sha256: str
    max_tokens: int

    @property
    @abstractmethod
    def dim(self) -> int:
        """E, numbers of a feature."""

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> list[Encoded]:
        """Features of captions, the same for a caption in any company, up to rounding.

        Raises:
            Failed: a feature is too large for float16.
        """
