"""Random models as transformers writes them, made offline: a T5 that reads bytes, and a CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_t5(folder: Path, width: int, *, whole: bool = False, **config: Any) -> Path:
    """A T5 with random weights, its encoder alone or `whole` with a decoder, and the tokenizer of ByT5."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 384,
        "d_model": width,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        **config,
    }
    made = transformers.T5ForConditionalGeneration if whole else transformers.T5EncoderModel
    made(transformers.T5Config(**settings)).save_pretrained(folder)
    transformers.ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder
