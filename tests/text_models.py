"""Writes random models in the layout of transformers, offline: a T5 with byte tokens, and a CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_t5(folder: Path, width: int, *, with_decoder: bool = False, **config: Any) -> Path:
    """Write a T5 with random weights, only its encoder or also its decoder, and the tokenizer of ByT5."""
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
    model = transformers.T5ForConditionalGeneration if with_decoder else transformers.T5EncoderModel
    model(transformers.T5Config(**settings)).save_pretrained(folder)
    transformers.ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


def write_clip(folder: Path, *, image_size: int = 16, **text: Any) -> Path:
    """Write a CLIP with random weights whose features differ between images and captions, in OpenAI's file layout.

    Args:
        folder: to write to.
        image_size: height and width of its images, in pixels.
        text: settings of its text model.
    """
    import torch
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    transformers.utils.logging.disable_progress_bar()
    letters = sorted(ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_config = {
        **shape,
        "vocab_size": len(words),
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 2,
        **text,
    }
    config = transformers.CLIPConfig(
        text_config=text_config,
        vision_config={**shape, "image_size": image_size, "patch_size": 4},
        projection_dim=8,
    )
    generator = torch.Generator().manual_seed(2)
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        # Sorted: the order of parameters may differ between versions of transformers.
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1 or "embedding" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    files = {
        "vocab.json": {word: number for number, word in enumerate(words)},
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
        "preprocessor_config.json": {
            "crop_size": image_size,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": image_size,
        },
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content), "utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder
