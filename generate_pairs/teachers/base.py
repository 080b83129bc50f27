"""The interface of teachers: a tokenizer, a token layout, and guided logits one AR step at a time.

All other code (token generation, the flow map, students, evaluation) uses a teacher only through these classes.
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
    """The number of tokens of each AR step, in the teacher's order.

    A `timestep` t in 0..S is the number of AR steps that are already data: the first `starts[t]` tokens.
    """

    tokens_per_step: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        return len(self.tokens_per_step)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Number of tokens before each AR step, S + 1 numbers, from `starts[0]` = 0 to `starts[S]` = L."""
        return tuple(accumulate(self.tokens_per_step, initial=0))

    @property
    def num_tokens(self) -> int:
        return self.starts[-1]

    def span(self, step: int) -> slice:
        """The positions of AR step `step`."""
        return slice(self.starts[step], self.starts[step + 1])

    @cached_property
    def step_of_token(self) -> tuple[int, ...]:
        """The AR step of each position, L numbers."""
        return tuple(step for step, count in enumerate(self.tokens_per_step) for _ in range(count))


class Tokenizer(nn.Module, ABC):
    """A VQ model: images to tokens, tokens or continuous embeddings to images."""

    config: Any
    """The frozen dataclass that the tokenizer was built from."""

    image_shape: tuple[int, int, int]
    """Channels, height and width of one image."""

    encoding_modules: ClassVar[tuple[str, ...]] = ()
    """Modules that only `encode` uses; a student's export omits them."""

    @property
    @abstractmethod
    def codebook_VC(self) -> Tensor:
        """The rows that the decoder reads (V, C), which are the targets of the flow map."""

    @property
    def has_encoder(self) -> bool:
        """Whether `encode` works; not after `decoder_only`. A family that cannot encode overrides this."""
        return all(hasattr(self, name) for name in self.encoding_modules)

    @abstractmethod
    def encode(self, images_BIHW: Tensor) -> Tensor:
        """Images (B, channels, height, width) in [-1, 1] to tokens (B, L), int64, in the teacher's order."""

    @abstractmethod
    def decode(self, embeddings_BLC: Tensor) -> Tensor:
        """Embeddings in the teacher's order to images (B, channels, height, width), nominally in [-1, 1], unclamped."""

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Codebook rows of tokens, (B, L, C)."""
        return nn.functional.embedding(tokens_BL, self.codebook_VC)

    def decoder_only(self) -> Self:
        """Delete the modules that only encode, in place, and return the tokenizer; sampling does not need them."""
        for name in self.encoding_modules:
            delattr(self, name)
        return self

    def decoder_state(self) -> dict[str, Tensor]:
        """The tensors of this tokenizer without the modules that only encode."""
        state = self.state_dict()
        return {name: state[name] for name in state if name.split(".", 1)[0] not in self.encoding_modules}


class TextCondition(NamedTuple):
    """Captions as the input of a network."""

    features_BTE: Tensor
    """The text encoder's output per token, padded on the left to the longest caption of the batch."""
    seen_BT: Tensor
    """Bool, False at padding: it attends only to itself, and nothing else attends to it."""


class Texts(ABC):
    """Captions and their conditions; the labels of a text-conditional teacher are indices into this list."""

    captions: Sequence[str]

    @abstractmethod
    def __call__(self, labels_B: Tensor) -> TextCondition:
        """The conditions of the captions with these indices (B,), int64, on the device of the indices."""


def takes_text(config: Any) -> bool:
    """Whether networks of this configuration are conditioned on captions; without `condition` they are not."""
    return getattr(config, "condition", "class") == "text"


class Decoding(ABC):
    """The state of decoding one batch: the tokens so far, and the caches of the teacher."""

    @abstractmethod
    def logits(self) -> Tensor:
        """Guided logits of the next AR step given the tokens so far, (B, s, V), float32, before any filter.

        Call it at most once per step.
        """

    @abstractmethod
    def append(self, tokens_Bs: Tensor) -> None:
        """Append the tokens of the step whose logits were computed last, (B, s), int64."""

    def prefill(self, tokens_of_steps: Sequence[Tensor]) -> None:
        """Append the tokens of the first AR steps, each (B, s), before any call of `logits`.

        This default appends step after step; a family may override it with one pass over all of them.
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
    """The captions of a text-conditional teacher, see `with_texts`."""

    @property
    def is_text_conditional(self) -> bool:
        """Whether labels are indices of captions."""
        return takes_text(self.transformer.config)

    def with_texts(self, texts: Texts) -> Self:
        """The same teacher, sharing all weights, whose labels are the numbers of these captions."""
        teacher = copy.copy(self)
        teacher.texts, teacher.num_classes = texts, len(texts.captions)
        return teacher

    @abstractmethod
    def start(self, labels_B: Tensor, guidance_scale: float) -> Decoding:
        """Start decoding a batch for labels (B,), int64 in 0..num_classes-1, else ValueError.

        `guidance_scale` is in the family's own convention.
        """

    def check_labels(self, labels_B: Tensor) -> None:
        """Raise ValueError if a label is not in 0..num_classes-1."""
        if ((labels_B < 0) | (labels_B >= self.num_classes)).any():
            raise ValueError(f"labels must be in 0..{self.num_classes - 1}, got {labels_B.tolist()}")

    @abstractmethod
    def filter(self, logits_NV: Tensor, settings: SamplingSettings) -> Tensor:
        """Guided logits (..., V) to normalised log-probabilities, -inf for tokens that top-k or top-p removes."""

    @abstractmethod
    def forced_logits(self, labels_B: Tensor, tokens_BL: Tensor) -> Tensor:
        """Unguided logits (B, L, V) of every position given the true tokens before it, in one differentiable pass.

        The label `num_classes` is the null class of classifier-free guidance.
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
    """Decoded images, nominally in [-1, 1], to pixels in [0, 1], clamped."""
    return torch.clamp(images * 0.5 + 0.5, 0.0, 1.0)


def from_unit_range(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] to the images in [-1, 1] that a tokenizer encodes."""
    return pixels * 2.0 - 1.0
