"""T5 as a text encoder, through transformers (the extra `text`).

Captions are encoded as in LlamaGen's official sampler (FoundationVision/LlamaGen, language/t5.py and
autoregressive/sample/sample_t2i.py): lower case, stripped, cut to 120 tokens including the end token; attention masks
the padding, and its features are dropped. Unlike that sampler, this encoder does not first clean captions with ftfy and
a list of rules (HTML, addresses, some scripts): captions that need cleaning must be cleaned before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from generate_pairs.text.base import Encoded, TextEncoder
from generate_pairs.text.pretrained import (
    folder_sha256,
    model_config,
    pretrained_folder,
    quiet_transformers,
    refuse_misfits,
)
from shards.core.errors import Failed, Refused

KEY = "captions.encoder"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
BYTES = "ByT5Tokenizer"
"""A tokenizer class that needs none of these files."""
DECODER = ("decoder.", "lm_head.")
"""Prefixes of the tensors of a complete T5 that the encoder does not use."""


class T5Encoder(TextEncoder):
    """The encoder of a T5 with its own tokenizer."""

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> list[Encoded]:
        texts = [caption.lower().strip() for caption in captions]
        with quiet_transformers(KEY, self.name):
            uncut_tokens = self.tokenizer(texts, add_special_tokens=True)["input_ids"]
            tokens = self.tokenizer(
                texts,
                add_special_tokens=True,
                truncation=True,
                max_length=self.max_tokens,
                padding="longest",
                return_attention_mask=True,
                return_tensors="pt",
            ).to(self.model.device)
        output = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        features_BTE, mask_BT = output.last_hidden_state.half().cpu(), tokens["attention_mask"].bool().cpu()
        encoded = []
        for caption, features_TE, mask_T, uncut in zip(captions, features_BTE, mask_BT, uncut_tokens, strict=True):
            kept_TE = features_TE[mask_T]
            if not torch.isfinite(kept_TE).all():
                shown = caption if len(caption) < 60 else f"{caption[:60]}…"
                raise Failed(f"{self.name} gives features of {shown!r} that float16 cannot hold")
            encoded.append(Encoded(kept_TE, len(uncut)))
        return encoded

    @classmethod
    def load(cls, name: str, *, max_tokens: int, dtype: torch.dtype, device: torch.device | str) -> Self:
        """The encoder of a T5 from a folder, or from the Hugging Face Hub as `hf://OWNER/REPOSITORY[@REVISION]`.

        Raises:
            Refused: the model is missing, is not a T5, has weights that do not fit, or transformers is not installed.
            Failed: the download failed.
        """
        folder, config = _checked_folder(name)
        with quiet_transformers(KEY, name) as transformers:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, info = transformers.T5EncoderModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                # `refuse_misfits` reports them.
                ignore_mismatched_sizes=True,
                dtype=dtype,
                output_loading_info=True,
            )
            end = tokenizer("")["input_ids"]
        refuse_misfits(KEY, name, info, DECODER)
        if end != [config.get("eos_token_id", 1)] or max(tokenizer.get_vocab().values()) >= config["vocab_size"]:
            raise Refused(f"{KEY}: the tokenizer in {folder} does not match its model")
        return cls(name, folder_sha256(folder), model.to(device).eval().requires_grad_(False), tokenizer, max_tokens)


def _checked_folder(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a T5 and its config.json. Raises as `T5Encoder.load`."""
    folder = pretrained_folder(KEY, name)
    config = model_config(KEY, folder, ("t5",), ("d_model", "vocab_size"))
    # Without a tokenizer's files, transformers silently creates an empty one. Files added later change the sha256 and
    # thus the data set's fingerprint.
    settings = folder / "tokenizer_config.json"
    reads_bytes = settings.is_file() and BYTES in settings.read_text("utf-8", "replace")
    if not reads_bytes and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise Refused(f"{KEY}: {folder} holds no tokenizer: neither {' nor '.join(TOKENIZER_FILES)}")
    return folder, config


def describe(name: str) -> tuple[str, int]:
    """sha256 and feature size of a T5; loads no weights and does not need transformers.

    Raises:
        Refused, Failed: as `T5Encoder.load`.
    """
    folder, config = _checked_folder(name)
    return folder_sha256(folder), int(config["d_model"])
