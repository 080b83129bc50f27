"""What a teacher is: a tokenizer, a token layout, and guided logits one AR step at a time.

Everything else in the project (the walk, the flow map, students, evaluation) sees a teacher through these classes only.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from generate_pairs.teachers.filtering import SamplingSettings


@dataclass(frozen=True)
class TokenLayout:
    """How many tokens each AR step makes, in the order the teacher makes them.

    A `timestep` t in 0..S is the number of AR steps that are already data: the first `starts[t]` tokens.
    """

    tokens_per_step: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        return len(self.tokens_per_step)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Tokens before each AR step, S + 1 numbers: `starts[0]` is 0, `starts[S]` is L."""
        return tuple(accumulate(self.tokens_per_step, initial=0))

    @property
    def num_tokens(self) -> int:
        return self.starts[-1]

    def span(self, step: int) -> slice:
        """The positions that AR step `step` makes."""
        return slice(self.starts[step], self.starts[step + 1])

    @cached_property
    def step_of_token(self) -> tuple[int, ...]:
        """The AR step that makes each position, L numbers."""
        return tuple(step for step, count in enumerate(self.tokens_per_step) for _ in range(count))


class Tokenizer(nn.Module, ABC):
    """A VQ model: images to tokens, tokens or continuous embeddings to images."""

    config: Any
    """The frozen dataclass that it was built from."""

    image_shape: tuple[int, int, int]
    """Channels, height and width of one image."""

    encoding_modules: ClassVar[tuple[str, ...]] = ()
    """Attributes that only `encode` reads: a student's export leaves them out."""

    @property
    @abstractmethod
    def codebook_VC(self) -> Tensor:
        """The rows that the decoder reads, V x C: what the flow map aims at."""

    @abstractmethod
    def encode(self, images_BIHW: Tensor) -> Tensor:
        """Images (B, channels, height, width) in [-1, 1] to tokens (B, L), int64, in the teacher's order."""

    @abstractmethod
    def decode(self, embeddings_BLC: Tensor) -> Tensor:
        """Embeddings in the teacher's order to images (B, channels, height, width), nominally in [-1, 1], not clamped."""

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Codebook rows of tokens, (B, L, C)."""
        return nn.functional.embedding(tokens_BL, self.codebook_VC)

    def decoder_only(self) -> Self:
        """Drop the modules that only encode, in place: what is left is all that sampling needs."""
        for name in self.encoding_modules:
            delattr(self, name)
        return self

    def decoder_state(self) -> dict[str, Tensor]:
        """The tensors of a tokenizer that went through `decoder_only`."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.split(".", 1)[0] not in self.encoding_modules
        }


class TextCondition(NamedTuple):
    """Captions as a network takes them in.

    Attributes:
        features_BTE: what the text encoder makes of each token, padded on the left to the longest of the batch.
        seen_BT: bool, False at padding, which only sees itself and is seen by nothing.
    """

    features_BTE: Tensor
    seen_BT: Tensor


class Texts(ABC):
    """A list of captions whose numbers are the labels of a text-conditional teacher, and what it is told of each."""

    captions: Sequence[str]

    @abstractmethod
    def __call__(self, labels_B: Tensor) -> TextCondition:
        """The captions of these numbers (B,), int64 in 0..len(captions)-1, on the numbers' device."""


def takes_text(config: Any) -> bool:
    """Whether networks of this configuration are conditioned on captions; on classes, where it does not say."""
    return getattr(config, "condition", "class") == "text"


class Decoding(ABC):
    """One batch on its way through the teacher's sequence, with whatever cache the teacher keeps."""

    @abstractmethod
    def logits(self) -> Tensor:
        """Guided logits of the next AR step given the tokens so far, (B, s, V), float32, before any filter.

        May be called once per step.
        """

    @abstractmethod
    def append(self, tokens_Bs: Tensor) -> None:
        """Take the tokens of the step whose logits were asked for, (B, s), int64."""

    def prefill(self, tokens_of_steps: Sequence[Tensor]) -> None:
        """Take the tokens of the first AR steps, each (B, s), before any logits are asked for.

        A family whose network sees them all at once may do it in one pass; here it is one after the other.
        """
        for tokens_Bs in tokens_of_steps:
            self.logits()
            self.append(tokens_Bs)


class Teacher(nn.Module, ABC):
    """A pretrained AR image model over a tokenizer's codebook."""

    transformer: Any
    """The network; its `config` is the frozen dataclass that it was built from."""

    tokenizer: Tokenizer
    layout: TokenLayout
    num_classes: int
    texts: Texts | None = None
    """Of a teacher that draws images for captions: those that its labels stand for, see `with_texts`."""

    @property
    def is_text_conditional(self) -> bool:
        """Whether labels are numbers of captions."""
        return takes_text(self.transformer.config)

    def with_texts(self, texts: Texts) -> Self:
        """The same teacher, sharing all weights, whose labels are the numbers of these captions."""
        teacher = copy.copy(self)
        teacher.texts, teacher.num_classes = texts, len(texts.captions)
        return teacher

    @abstractmethod
    def start(self, labels_B: Tensor, guidance_scale: float) -> Decoding:
        """Begin a batch of sequences for labels (B,), int64 in 0..num_classes-1.

        `guidance_scale` is in the family's own convention.
        """

    @abstractmethod
    def filter(self, logits_NV: Tensor, settings: SamplingSettings) -> Tensor:
        """Guided logits (..., V) to normalised log-probabilities, -inf where top-k or top-p removes a token."""

    @abstractmethod
    def forced_logits(self, labels_B: Tensor, tokens_BL: Tensor) -> Tensor:
        """Unguided logits (B, L, V) of every position given the true tokens before it, in one differentiable pass.

        A label equal to `num_classes` is the null class of classifier-free guidance.
        """

    def pack(self) -> None:
        """Lays the network's weights out for decoding, where that is faster; it can then only decode.

        The numbers that it makes may differ by rounding. Nothing to do unless a family says otherwise.
        """

    @property
    def codebook_VC(self) -> Tensor:
        return self.tokenizer.codebook_VC

    @property
    def vocab_size(self) -> int:
        return self.codebook_VC.shape[0]

    @property
    def codebook_dim(self) -> int:
        return self.codebook_VC.shape[1]


def to_unit_range(images: Tensor) -> Tensor:
    """Decoded images in nominal [-1, 1] to pixels in [0, 1], clamped."""
    return torch.clamp(images * 0.5 + 0.5, 0.0, 1.0)
