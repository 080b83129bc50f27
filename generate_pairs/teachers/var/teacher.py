"""VAR as a teacher: guided logits scale by scale, each read from the latent map that the ones before it made.

A guided batch holds its conditional rows first, then as many null rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from generate_pairs.compute.float32 import at_least_float32
from generate_pairs.compute.packed_linear import pack_linears
from generate_pairs.teachers.base import Decoding, Teacher
from generate_pairs.teachers.filtering import SamplingSettings, filter_var
from generate_pairs.teachers.var.tokenizer import VarTokenizer
from generate_pairs.teachers.var.transformer import LayerCache, VarConfig, VarTransformer

__all__ = ["VarConfig", "VarDecoding", "VarTeacher", "VarTransformer"]


class VarDecoding(Decoding):
    """One batch on its way through the scales."""

    def __init__(
        self,
        transformer: VarTransformer,
        tokenizer: VarTokenizer,
        condition_BD: Tensor,
        guidance_scale: float,
    ) -> None:
        """Begin with empty caches.

        Args:
            transformer: of the tokenizer's scales.
            tokenizer: turns tokens into the next scale's input.
            condition_BD: class embeddings; unless `guidance_scale` is 0, those of the null rows follow.
            guidance_scale: 0 is none.
        """
        self.transformer = transformer
        self.quantizer = tokenizer.quantize
        self.condition_BD = condition_BD
        self.guidance_scale = guidance_scale
        self.is_guided = guidance_scale != 0.0
        self.modulations = transformer.modulations(condition_BD)
        self.positions_1LD = transformer.positions()
        batch_size, config = condition_BD.shape[0], transformer.config
        self.caches = [LayerCache(batch_size, config, like=condition_BD) for _ in transformer.blocks]
        self.scale = 0
        self.f_hat_BChw: Tensor | None = None

    @torch.no_grad()
    def logits(self) -> Tensor:
        span = self.quantizer.layout.span(self.scale)
        x_BsD = self._next_input() + self.positions_1LD[:, span]
        h_BsD = self.transformer.hidden(
            x_BsD, self.condition_BD, self.modulations, caches=self.caches, span=span
        )
        if self.is_guided:
            # The head is linear: combining what it reads gives the guided logits for half the work.
            conditional_BsD, null_BsD = h_BsD.chunk(2)
            h_BsD = torch.lerp(null_BsD, conditional_BsD, 1 + self._guidance())
        return at_least_float32(self.transformer.head(h_BsD))

    @torch.no_grad()
    def append(self, tokens_Bs: Tensor) -> None:
        # Nothing is read after the last scale.
        if self.scale + 1 < self.quantizer.layout.num_steps:
            added_BChw = self.quantizer.upsampled(self.quantizer.embedding(tokens_Bs), self.scale)
            self.f_hat_BChw = added_BChw if self.f_hat_BChw is None else self.f_hat_BChw + added_BChw
        self.scale += 1

    def _guidance(self) -> float:
        """It grows with the scale, from 0 to the whole at the last one; a single scale has none."""
        return self.guidance_scale * self.scale / max(self.quantizer.layout.num_steps - 1, 1)

    def _next_input(self) -> Tensor:
        """Embedded input of the scale, before positions: (B, s, D)."""
        if self.f_hat_BChw is None:
            return self.condition_BD[:, None] + self.transformer.pos_start
        inputs_BsC = self.quantizer.shrunk(self.f_hat_BChw, self.scale)
        x_BsD = self.transformer.word_embed(inputs_BsC.to(self.transformer.dtype))
        return torch.cat([x_BsD, x_BsD]) if self.is_guided else x_BsD


class VarTeacher(Teacher):
    """A VAR transformer over its tokenizer: one scale an AR step.

    Guided logits are (1 + t) conditional - t null with t = guidance_scale * scale / (S - 1); 0 is no
    guidance, for half the work. The tokenizer may be of higher precision than the transformer.
    """

    transformer: VarTransformer
    tokenizer: VarTokenizer

    def __init__(self, transformer: VarTransformer, tokenizer: VarTokenizer) -> None:
        super().__init__()
        for name in ("scales", "vocab_size", "codebook_dim"):
            ours, theirs = getattr(transformer.config, name), getattr(tokenizer.config, name)
            if ours != theirs:
                raise ValueError(f"the transformer's {name} is {ours}, its tokenizer's {theirs}")
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.layout = transformer.config.layout
        self.num_classes = transformer.config.num_classes

    def pack(self) -> None:
        pack_linears(self.transformer)

    @torch.no_grad()
    def start(self, labels_B: Tensor, guidance_scale: float) -> VarDecoding:
        """Begin a batch.

        Args:
            labels_B: int64, 0..num_classes-1.
            guidance_scale: VAR's convention, 0 is none.

        Raises:
            ValueError: a label is out of range.
        """
        if ((labels_B < 0) | (labels_B >= self.num_classes)).any():
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, got {labels_B.tolist()}")
        if guidance_scale != 0.0:
            labels_B = torch.cat([labels_B, torch.full_like(labels_B, self.num_classes)])
        condition_BD = self.transformer.class_emb(labels_B)
        return VarDecoding(self.transformer, self.tokenizer, condition_BD, guidance_scale)

    def filter(self, logits_NV: Tensor, settings: SamplingSettings) -> Tensor:
        """As VAR's own sampler filters: top-k, then top-p.

        Raises:
            ValueError: a temperature other than 1, which VAR's sampler does not have.
        """
        if settings.temperature != 1.0:
            raise ValueError(
                f"temperature is {settings.temperature}: VAR samples without a temperature, leave it at 1"
            )
        return filter_var(logits_NV, settings.top_k, settings.top_p)

    def forced_logits(self, labels_B: Tensor, tokens_BL: Tensor) -> Tensor:
        with torch.no_grad():
            next_inputs_BnC = self.tokenizer.next_inputs(tokens_BL)
        return self.transformer(labels_B, next_inputs_BnC.to(self.transformer.dtype))
