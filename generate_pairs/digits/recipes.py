"""The training recipe of each embedded teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generate_pairs.text.digit_captions import caption_words
from generate_pairs.text.small_t5 import SmallT5Config


@dataclass(frozen=True)
class Phase:
    """Hyperparameters of one training."""

    num_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    ema_decay: float = 0.998


@dataclass(frozen=True)
class Recipe:
    """A teacher's architecture and training; `encoder` is set for a text-conditional teacher."""

    family: str
    tokenizer: Mapping[str, Any]
    transformer: Mapping[str, Any]
    tokenizer_phase: Phase
    transformer_phase: Phase
    copies: int = 12
    encoder: SmallT5Config | None = None

    @property
    def num_steps(self) -> int:
        """Steps of both phases."""
        return self.tokenizer_phase.num_steps + self.transformer_phase.num_steps


_TOKENIZER: Mapping[str, Any] = {
    "vocab_size": 64,
    "codebook_dim": 3,
    "l2_normalised": False,
    "z_channels": 32,
    "ch": 32,
    "ch_mult": (1, 1),
    "num_res_blocks": 1,
    "image_channels": 1,
    "image_size": 8,
}
_TRANSFORMER: Mapping[str, Any] = {
    "width": 64,
    "depth": 4,
    "num_heads": 4,
    "vocab_size": 64,
    "num_tokens": 16,
    "num_classes": 10,
    "ffn_multiple_of": 32,
    "dropout": 0.1,
}
_TOKENIZER_PHASE = Phase(3_000, 64, 2e-3)
_TRANSFORMER_PHASE = Phase(6_000, 64, 2e-3, weight_decay=0.02)

RECIPES: Mapping[str, Recipe] = {
    "digits": Recipe("llamagen", _TOKENIZER, _TRANSFORMER, _TOKENIZER_PHASE, _TRANSFORMER_PHASE),
    # One token per pixel: 64 AR steps and a one-dimensional codebook. The network is narrow and deep: as good as width
    # 64 with three times the weights, and 64 positions cost little arithmetic.
    "digits-64": Recipe(
        family="llamagen",
        tokenizer={**_TOKENIZER, "vocab_size": 16, "codebook_dim": 1, "ch_mult": (1,)},
        transformer={
            **_TRANSFORMER,
            "width": 32,
            "depth": 6,
            "num_heads": 2,
            "vocab_size": 16,
            "num_tokens": 64,
            "dropout": 0.05,
        },
        tokenizer_phase=Phase(2_000, 64, 2e-3),
        transformer_phase=Phase(8_000, 64, 3e-3, weight_decay=0.02),
    ),
    "digits-text": Recipe(
        family="llamagen",
        tokenizer=_TOKENIZER,
        transformer={
            **_TRANSFORMER,
            "num_classes": 1,
            "condition": "text",
            # The longest caption has six words and the end token.
            "num_condition_tokens": 8,
            "caption_dim": 64,
        },
        tokenizer_phase=_TOKENIZER_PHASE,
        transformer_phase=_TRANSFORMER_PHASE,
        encoder=SmallT5Config(width=64, depth=2, num_heads=4, head_dim=16, ffn_width=128, words=caption_words()),
    ),
    "digits-var": Recipe(
        family="var",
        tokenizer={
            "vocab_size": 64,
            "codebook_dim": 3,
            "ch": 32,
            "ch_mult": (1, 1),
            "num_res_blocks": 1,
            "scales": (1, 2, 4),
            "image_channels": 1,
            "image_size": 8,
        },
        transformer={
            "width": 64,
            "depth": 4,
            "num_heads": 4,
            "vocab_size": 64,
            "codebook_dim": 3,
            "scales": (1, 2, 4),
            "num_classes": 10,
            "dropout": 0.1,
        },
        tokenizer_phase=_TOKENIZER_PHASE,
        transformer_phase=Phase(4_000, 64, 3e-3, weight_decay=0.05),
    ),
}
