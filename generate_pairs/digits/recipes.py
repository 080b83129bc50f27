"""How each embedded teacher is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generate_pairs.text.digit_captions import spelled_numbers
from generate_pairs.text.small_t5 import SmallT5Config


@dataclass(frozen=True)
class Phase:
    """One training: how long, how fast."""

    num_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    ema_decay: float = 0.998


@dataclass(frozen=True)
class Recipe:
    """A teacher's shape and how it is trained."""

    family: str
    tokenizer: Mapping[str, Any]
    transformer: Mapping[str, Any]
    tokenizer_phase: Phase
    transformer_phase: Phase
    copies: int = 12
    encoder: SmallT5Config | None = None
    """Of a teacher that is conditioned on text."""

    @property
    def num_steps(self) -> int:
        """Of both phases."""
        return self.tokenizer_phase.num_steps + self.transformer_phase.num_steps


RECIPES: Mapping[str, Recipe] = {
    "digits": Recipe(
        family="llamagen",
        tokenizer={
            "vocab_size": 64,
            "codebook_dim": 3,
            "l2_normalised": False,
            "z_channels": 32,
            "ch": 32,
            "ch_mult": (1, 1),
            "num_res_blocks": 1,
            "image_channels": 1,
            "image_size": 8,
        },
        transformer={
            "width": 64,
            "depth": 4,
            "num_heads": 4,
            "vocab_size": 64,
            "num_tokens": 16,
            "num_classes": 10,
            "ffn_multiple_of": 32,
            "dropout": 0.1,
        },
        tokenizer_phase=Phase(3_000, 64, 2e-3),
        transformer_phase=Phase(6_000, 64, 2e-3, weight_decay=0.02),
    ),
    # Every pixel a token of its own: 64 AR steps, and a codebook on a line. Narrow and deep: no worse than a width of 64
    # with three times the weights, and a pass over 64 positions is little arithmetic.
    "digits-64": Recipe(
        family="llamagen",
        tokenizer={
            "vocab_size": 16,
            "codebook_dim": 1,
            "l2_normalised": False,
            "z_channels": 32,
            "ch": 32,
            "ch_mult": (1,),
            "num_res_blocks": 1,
            "image_channels": 1,
            "image_size": 8,
        },
        transformer={
            "width": 32,
            "depth": 6,
            "num_heads": 2,
            "vocab_size": 16,
            "num_tokens": 64,
            "num_classes": 10,
            "ffn_multiple_of": 32,
            "dropout": 0.05,
        },
        tokenizer_phase=Phase(2_000, 64, 2e-3),
        transformer_phase=Phase(8_000, 64, 3e-3, weight_decay=0.02),
    ),
    "digits-text": Recipe(
        family="llamagen",
        tokenizer={
            "vocab_size": 64,
            "codebook_dim": 3,
            "l2_normalised": False,
            "z_channels": 32,
            "ch": 32,
            "ch_mult": (1, 1),
            "num_res_blocks": 1,
            "image_channels": 1,
            "image_size": 8,
        },
        transformer={
            "width": 64,
            "depth": 4,
            "num_heads": 4,
            "vocab_size": 64,
            "num_tokens": 16,
            "num_classes": 1,
            "condition": "text",
            # The longest caption has six words; the end of the text is a token, too.
            "num_condition_tokens": 8,
            "caption_dim": 64,
            "ffn_multiple_of": 32,
            "dropout": 0.1,
        },
        tokenizer_phase=Phase(3_000, 64, 2e-3),
        transformer_phase=Phase(6_000, 64, 2e-3, weight_decay=0.02),
        encoder=SmallT5Config(
            width=64, depth=2, num_heads=4, head_dim=16, ffn_width=128, words=spelled_numbers()
        ),
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
        tokenizer_phase=Phase(3_000, 64, 2e-3),
        transformer_phase=Phase(4_000, 64, 3e-3, weight_decay=0.05),
    ),
}
