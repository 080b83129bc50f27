"""LlamaGen as a teacher: guided logits token by token over a static cache.

A batch holds its conditional rows and, while there is guidance, as many null rows after them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from generate_pairs.teachers.base import Decoding, Teacher, Tokenizer
from generate_pairs.teachers.filtering import SamplingSettings, filter_llamagen
from generate_pairs.teachers.llamagen_transformer import (
    CaptionEmbedding,
    ClassEmbedding,
    LlamaGenConfig,
    LlamaGenTransformer,
    at_least_float32,
)
from generate_pairs.teachers.packing import pack_linears

__all__ = ["LlamaGenConfig", "LlamaGenDecoding", "LlamaGenTeacher", "LlamaGenTransformer"]


class LlamaGenDecoding(Decoding):
    """One batch on its way through the sequence."""

    def __init__(
        self,
        transformer: LlamaGenTransformer,
        condition_BTD: Tensor,
        guidance_scale: float,
        num_guided_tokens: int | None,
        seen_BT: Tensor | None = None,
    ) -> None:
        """Begin with empty caches.

        Args:
            condition_BTD: condition tokens; unless `guidance_scale` is 1, those of the null rows follow.
            guidance_scale: 1 is none.
            num_guided_tokens: guide only so many first tokens; None is all.
            seen_BT: bool, False at padded condition tokens, which only they themselves see.
        """
        config = transformer.config
        self.transformer = transformer
        self.condition_BTD = condition_BTD
        self.guidance_scale = guidance_scale
        self.is_guided = guidance_scale != 1.0
        self.num_guided_tokens = config.num_tokens if num_guided_tokens is None else num_guided_tokens
        self.caches = transformer.caches(condition_BTD.shape[0])
        self.rotation = transformer.rotation.to(condition_BTD.device)
        self.seen_B11P: Tensor | None = None
        if seen_BT is not None:
            self.seen_B11P = F.pad(seen_BT, (0, config.num_tokens - 1), value=True)[:, None, None]
        self.position = 0
        self.num_made = 0
        self.tokens_B1: Tensor | None = None

    @torch.no_grad()
    def logits(self) -> Tensor:
        if self.is_guided and self.num_made >= self.num_guided_tokens:
            self._drop_null_rows()
        x_BTD = self._next_input()
        num_queries = x_BTD.shape[1]
        start, self.position = self.position, self.position + num_queries
        rotation, mask = self.rotation[start : self.position], self._mask(num_queries)
        h_B1D = self.transformer.hidden(x_BTD, rotation, self.caches, mask)[:, -1:]
        if self.is_guided:
            # The head is linear: combining what it reads gives the guided logits for half the work.
            conditional_B1D, null_B1D = h_B1D.chunk(2)
            h_B1D = torch.lerp(null_B1D, conditional_B1D, self.guidance_scale)
        return at_least_float32(self.transformer.output(h_B1D))

    def append(self, tokens_Bs: Tensor) -> None:
        self.tokens_B1 = tokens_Bs
        self.num_made += 1

    @torch.no_grad()
    def prefill(self, tokens_of_steps: Sequence[Tensor]) -> None:
        """As in the base class. The tokens follow the condition, and go through the network with it."""
        if not tokens_of_steps:
            return
        x_BTD = self.transformer.tok_embeddings(torch.cat(list(tokens_of_steps), dim=1))
        x_BTD = torch.cat([x_BTD, x_BTD]) if self.is_guided else x_BTD
        self.condition_BTD = torch.cat([self.condition_BTD, x_BTD], dim=1)
        self.num_made = len(tokens_of_steps)

    def _next_input(self) -> Tensor:
        if self.position == 0:
            return self.condition_BTD
        if self.tokens_B1 is None:
            raise RuntimeError("logits() was called twice for one step: append the step's tokens first")
        x_B1D = self.transformer.tok_embeddings(self.tokens_B1)
        self.tokens_B1 = None
        return torch.cat([x_B1D, x_B1D]) if self.is_guided else x_B1D

    def _mask(self, num_queries: int) -> Tensor | None:
        """Which positions each query sees; None where that is all before it and itself."""
        if self.seen_B11P is None:
            return None
        seen_B11P = self.seen_B11P[..., : self.position]
        if num_queries == 1:
            return seen_B11P
        square = torch.ones(num_queries, num_queries, dtype=torch.bool, device=seen_B11P.device)
        return (seen_B11P & square.tril()) | square.tril().triu()

    def _drop_null_rows(self) -> None:
        """Go on without guidance: the rest of the sequence costs half."""
        batch_size = self.condition_BTD.shape[0] // 2
        self.is_guided = False
        self.condition_BTD = self.condition_BTD[:batch_size]
        for cache in self.caches:
            cache.keep_first(batch_size)
        if self.seen_B11P is not None:
            self.seen_B11P = self.seen_B11P[:batch_size]


class LlamaGenTeacher(Teacher):
    """A LlamaGen transformer over its tokenizer: one token an AR step.

    Guided logits are null + (conditional - null) * guidance_scale; 1 is no guidance, for half the work.
    """

    def __init__(self, transformer: LlamaGenTransformer, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = transformer.config
        vocab_size = tokenizer.codebook_VC.shape[0]
        if vocab_size != config.vocab_size:
            raise ValueError(
                f"the transformer's vocab_size is {config.vocab_size}, its tokenizer's {vocab_size}"
            )
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.layout = config.layout
        self.num_classes = config.num_classes

    def pack(self) -> None:
        pack_linears(self.transformer)

    @torch.no_grad()
    def start(
        self, labels_B: Tensor, guidance_scale: float, num_guided_tokens: int | None = None
    ) -> LlamaGenDecoding:
        """Begin a batch for class labels.

        Args:
            labels_B: int64, 0..num_classes-1.
            guidance_scale: 1 is none.
            num_guided_tokens: guide only so many first tokens, m + 2 for the official `cfg_interval` m;
                None is all.

        Raises:
            ValueError: the teacher is conditioned on text, or a label is out of range.
        """
        embedding = self.transformer.cls_embedding
        if not isinstance(embedding, ClassEmbedding):
            raise ValueError("this teacher is conditioned on text: use start_text")
        if ((labels_B < 0) | (labels_B >= self.num_classes)).any():
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, got {labels_B.tolist()}")
        if guidance_scale != 1.0:
            labels_B = torch.cat([labels_B, torch.full_like(labels_B, self.num_classes)])
        return LlamaGenDecoding(self.transformer, embedding(labels_B), guidance_scale, num_guided_tokens)

    @torch.no_grad()
    def start_text(
        self,
        features_BTE: Tensor,
        mask_BT: Tensor,
        guidance_scale: float,
        num_guided_tokens: int | None = None,
    ) -> LlamaGenDecoding:
        """Begin a batch for captions.

        Args:
            features_BTE: the text encoder's output, padded on the left to T = num_condition_tokens.
            mask_BT: nonzero at real text tokens.
            guidance_scale: 1 is none.
            num_guided_tokens: as in `start`.

        Raises:
            ValueError: the teacher is conditioned on classes, or a shape is wrong.
        """
        embedding = self.transformer.cls_embedding
        if not isinstance(embedding, CaptionEmbedding):
            raise ValueError("this teacher is conditioned on classes: use start")
        wanted = (mask_BT.shape[0], *embedding.uncond_embedding.shape)
        if features_BTE.shape != wanted or mask_BT.shape != wanted[:2]:
            raise ValueError(
                f"caption features must be {wanted} and their mask {wanted[:2]}, "
                f"got {tuple(features_BTE.shape)} and {tuple(mask_BT.shape)}"
            )
        seen_BT = mask_BT.bool()
        features_BTE = features_BTE * seen_BT[..., None]
        if guidance_scale != 1.0:
            null_BTE = embedding.uncond_embedding.expand_as(features_BTE)
            features_BTE, seen_BT = torch.cat([features_BTE, null_BTE]), torch.cat([seen_BT, seen_BT])
        condition_BTD = embedding(features_BTE)
        return LlamaGenDecoding(self.transformer, condition_BTD, guidance_scale, num_guided_tokens, seen_BT)

    def filter(self, logits_NV: Tensor, settings: SamplingSettings) -> Tensor:
        return filter_llamagen(logits_NV, settings.top_k, settings.top_p, settings.temperature)

    def forced_logits(self, labels_B: Tensor, tokens_BL: Tensor) -> Tensor:
        return self.transformer(labels_B, tokens_BL)
