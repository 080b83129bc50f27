"""LlamaGen as a teacher: guided logits, token by token, with a static cache.

With guidance, a batch contains its conditional rows and then as many null rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from generate_pairs.compute.float32 import at_least_float32
from generate_pairs.teachers.base import Decoding, Teacher, TextCondition, Tokenizer
from generate_pairs.teachers.filtering import SamplingSettings, filter_llamagen
from generate_pairs.teachers.llamagen.transformer import (
    CaptionEmbedding,
    LlamaGenConfig,
    LlamaGenTransformer,
    caption_mask,
)

__all__ = ["LlamaGenConfig", "LlamaGenDecoding", "LlamaGenTeacher", "LlamaGenTransformer"]


class LlamaGenDecoding(Decoding):
    """The state of decoding one batch."""

    def __init__(
        self,
        transformer: LlamaGenTransformer,
        condition_BTD: Tensor,
        guidance_scale: float,
        num_guided_tokens: int | None,
        seen_BT: Tensor | None = None,
    ) -> None:
        """Start with empty caches.

        Unless `guidance_scale` is 1, the condition tokens are followed by those of the null rows. `seen_BT` is False at
        padding of the condition.
        """
        config = transformer.config
        self.transformer = transformer
        self.condition_BTD = condition_BTD
        self.guidance_scale = guidance_scale
        self.is_guided = guidance_scale != 1.0
        self.num_guided_tokens = config.num_tokens if num_guided_tokens is None else num_guided_tokens
        self.caches = transformer.caches(*condition_BTD.shape[:2])
        self.rotation = transformer.rotation_after(condition_BTD.shape[1]).to(condition_BTD.device)
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
            # The head is linear: combining its inputs gives the guided logits for half the work.
            conditional_B1D, null_B1D = h_B1D.chunk(2)
            h_B1D = torch.lerp(null_B1D, conditional_B1D, self.guidance_scale)
        return at_least_float32(self.transformer.output(h_B1D))

    def append(self, tokens_Bs: Tensor) -> None:
        self.tokens_B1 = tokens_Bs
        self.num_made += 1

    @torch.no_grad()
    def prefill(self, tokens_of_steps: Sequence[Tensor]) -> None:
        """As in the base class: the network processes the tokens together with the condition."""
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
        """The positions that each query attends to; None for itself and all before it."""
        if self.seen_B11P is None:
            return None
        seen_B11P = self.seen_B11P[..., : self.position]
        return seen_B11P if num_queries == 1 else caption_mask(seen_B11P[:, 0, 0], 0)

    def _drop_null_rows(self) -> None:
        """Continue without guidance, which halves the cost of the remaining tokens."""
        batch_size = self.condition_BTD.shape[0] // 2
        self.is_guided = False
        self.condition_BTD = self.condition_BTD[:batch_size]
        for cache in self.caches:
            cache.keep_first(batch_size)
        if self.seen_B11P is not None:
            self.seen_B11P = self.seen_B11P[:batch_size]


class LlamaGenTeacher(Teacher):
    """A LlamaGen transformer with its tokenizer: one token per AR step.

    Guided logits are null + (conditional - null) * guidance_scale; 1 is no guidance and costs half.
    """

    def __init__(self, transformer: LlamaGenTransformer, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = transformer.config
        vocab_size = tokenizer.codebook_VC.shape[0]
        if vocab_size != config.vocab_size:
            raise ValueError(f"the transformer's vocab_size is {config.vocab_size}, its tokenizer's {vocab_size}")
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.layout = config.layout
        self.num_classes = config.num_classes

    @torch.no_grad()
    def start(self, labels_B: Tensor, guidance_scale: float, num_guided_tokens: int | None = None) -> LlamaGenDecoding:
        """Start decoding a batch for class labels or, with a text-conditional teacher, for indices of captions.

        Args:
            labels_B: int64, 0..num_classes-1.
            guidance_scale: 1 is no guidance.
            num_guided_tokens: the number of first tokens that are guided, m + 2 for the official `cfg_interval` m;
                None is all.

        Raises:
            ValueError: the teacher is conditioned on text and has no captions, or a label is out of range.
        """
        if self.texts is None and self.is_text_conditional:
            raise ValueError("this teacher is conditioned on text and has no captions: use start_text")
        self.check_labels(labels_B)
        if self.texts is not None:
            return self.start_text(self.texts(labels_B), guidance_scale, num_guided_tokens)
        if guidance_scale != 1.0:
            labels_B = torch.cat([labels_B, torch.full_like(labels_B, self.num_classes)])
        condition_B1D = self.transformer.cls_embedding(labels_B)
        return LlamaGenDecoding(self.transformer, condition_B1D, guidance_scale, num_guided_tokens)

    @torch.no_grad()
    def start_text(
        self, condition: TextCondition, guidance_scale: float, num_guided_tokens: int | None = None
    ) -> LlamaGenDecoding:
        """Start decoding a batch for captions of at most `num_condition_tokens` tokens, otherwise as `start`.

        Raises:
            ValueError: the teacher is conditioned on classes, or a shape is wrong.
        """
        embedding = self._caption_embedding("start")
        shape, seen_BT = tuple(condition.features_BTE.shape), condition.seen_BT
        max_tokens, dim = embedding.uncond_embedding.shape
        if shape != (*seen_BT.shape, dim) or not 1 <= shape[1] <= max_tokens:
            raise ValueError(
                f"caption features must be (B, T, {dim}) and their mask (B, T), with T from 1 to {max_tokens}; "
                f"got {shape} and {tuple(seen_BT.shape)}"
            )
        condition_BTD = embedding.of(condition)
        if guidance_scale != 1.0:
            null_BTD = embedding.unconditional(condition).expand_as(condition_BTD)
            condition_BTD, seen_BT = torch.cat([condition_BTD, null_BTD]), torch.cat([seen_BT, seen_BT])
        return LlamaGenDecoding(self.transformer, condition_BTD, guidance_scale, num_guided_tokens, seen_BT)

    def _caption_embedding(self, alternative: str) -> CaptionEmbedding:
        embedding = self.transformer.cls_embedding
        if not isinstance(embedding, CaptionEmbedding):
            raise ValueError(f"this teacher is conditioned on classes: use {alternative}")
        return embedding

    def filter(self, logits_NV: Tensor, settings: SamplingSettings) -> Tensor:
        return filter_llamagen(logits_NV, settings.top_k, settings.top_p, settings.temperature)

    def forced_logits(self, labels_B: Tensor, tokens_BL: Tensor) -> Tensor:
        if self.is_text_conditional:
            raise ValueError("this teacher is conditioned on text: use forced_text_logits")
        return self.transformer(self.transformer.cls_embedding(labels_B), tokens_BL)

    def forced_text_logits(self, condition: TextCondition, tokens_BL: Tensor, is_null_B: Tensor | None = None) -> Tensor:
        """As `forced_logits`, for captions; rows with `is_null_B` True have the null condition."""
        embedding = self._caption_embedding("forced_logits")
        condition_BTD = embedding.of(condition)
        if is_null_B is not None:
            null_BTD = embedding.unconditional(condition)
            condition_BTD = torch.where(is_null_B[:, None, None], null_BTD, condition_BTD)
        return self.transformer(condition_BTD, tokens_BL, condition.seen_BT)
