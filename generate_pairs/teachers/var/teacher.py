"""VAR as a teacher: guided logits, scale by scale, each from the latent map of the scales before it.

With guidance, a batch contains its conditional rows and then as many null rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from generate_pairs.compute.float32 import at_least_float32
from generate_pairs.teachers.base import Decoding, Teacher
from generate_pairs.teachers.filtering import SamplingSettings, filter_var
from generate_pairs.teachers.var.tokenizer import VarTokenizer
from generate_pairs.teachers.var.transformer import LayerCache, VarConfig, VarTransformer

__all__ = ["VarConfig", "VarDecoding", "VarTeacher", "VarTransformer"]


class VarDecoding(Decoding):
    """The state of decoding one batch."""

    def __init__(
        self, transformer: VarTransformer, tokenizer: VarTokenizer, condition_BD: Tensor, guidance_scale: float
    ) -> None:
        """Start with empty caches.

        `condition_BD` has the class embeddings and, unless `guidance_scale` is 0, after them those of the null rows.
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
        h_BsD = self.transformer.hidden(x_BsD, self.condition_BD, self.modulations, caches=self.caches, span=span)
        if self.is_guided:
            # The head is linear: combining its inputs gives the guided logits for half the work.
            conditional_BsD, null_BsD = h_BsD.chunk(2)
            h_BsD = torch.lerp(null_BsD, conditional_BsD, 1 + self._guidance())
        return at_least_float32(self.transformer.head(h_BsD))

    @torch.no_grad()
    def append(self, tokens_Bs: Tensor) -> None:
        # The map of the last scale is not used.
        if self.scale + 1 < self.quantizer.layout.num_steps:
            added_BChw = self.quantizer.upsampled(self.quantizer.embedding(tokens_Bs), self.scale)
            self.f_hat_BChw = added_BChw if self.f_hat_BChw is None else self.f_hat_BChw + added_BChw
        self.scale += 1

    def _guidance(self) -> float:
        """The scale's guidance: it grows from 0 to `guidance_scale` at the last scale; a single scale has none."""
        return self.guidance_scale * self.scale / max(self.quantizer.layout.num_steps - 1, 1)

    def _next_input(self) -> Tensor:
        """Embedded input of the scale, without position embeddings: (B, s, D)."""
        if self.f_hat_BChw is None:
            return self.condition_BD[:, None] + self.transformer.pos_start
        inputs_BsC = self.quantizer.shrunk(self.f_hat_BChw, self.scale)
        x_BsD = self.transformer.word_embed(inputs_BsC.to(self.transformer.dtype))
        return torch.cat([x_BsD, x_BsD]) if self.is_guided else x_BsD


class VarTeacher(Teacher):
    """A VAR transformer with its tokenizer: one scale per AR step.

    Guided logits are (1 + t) conditional - t null with t = guidance_scale * scale / (S - 1); 0 is no guidance and
    costs half. The tokenizer may have a higher precision than the transformer.
    """

    transformer: VarTransformer
    tokenizer: VarTokenizer

    def __init__(self, transformer: VarTransformer, tokenizer: VarTokenizer) -> None:
        super().__init__()
        for name in ("scales", "vocab_size", "codebook_dim"):
            value, expected = getattr(transformer.config, name), getattr(tokenizer.config, name)
            if value != expected:
                raise ValueError(f"the transformer's {name} is {value}, its tokenizer's {expected}")
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.layout = transformer.config.layout
        self.num_classes = transformer.config.num_classes

    @torch.no_grad()
    def start(self, labels_B: Tensor, guidance_scale: float) -> VarDecoding:
        """As in the base class; a guidance scale of 0 is no guidance."""
        self.check_labels(labels_B)
        if guidance_scale != 0.0:
            labels_B = torch.cat([labels_B, torch.full_like(labels_B, self.num_classes)])
        condition_BD = self.transformer.class_emb(labels_B)
        return VarDecoding(self.transformer, self.tokenizer, condition_BD, guidance_scale)

    def filter(self, logits_NV: Tensor, settings: SamplingSettings) -> Tensor:
        """As in the base class; raises ValueError if the temperature is not 1, as VAR's sampler has none."""
        if settings.temperature != 1.0:
            raise ValueError(f"temperature is {settings.temperature}: VAR samples without a temperature, so it must be 1")
        return filter_var(logits_NV, settings.top_k, settings.top_p)

    def forced_logits(self, labels_B: Tensor, tokens_BL: Tensor) -> Tensor:
        with torch.no_grad():
            next_inputs_BnC = self.tokenizer.next_inputs(tokens_BL)
        return self.transformer(labels_B, next_inputs_BnC.to(self.transformer.dtype))
