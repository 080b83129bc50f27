"""T5 as a text encoder, through transformers (the extra `text`).

Captions are encoded as LlamaGen's official sampler does (FoundationVision/LlamaGen, language/t5.py and
autoregressive/sample/sample_t2i.py): lower case, no blanks around, cut to 120 tokens, the end of the text among them;
padding is not seen and its features are not kept. That sampler first cleans captions with ftfy and a list of rules (HTML,
addresses, some scripts), twice; this does not: captions that need it are to be cleaned before.
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
MODEL_TYPES = ("t5",)
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
BYTES = "ByT5Tokenizer"
"""A tokenizer that needs neither."""
DECODER = ("decoder.", "lm_head.")
"""Tensors of a whole T5, which an encoder has no use for."""


class T5Encoder(TextEncoder):
    """The encoder of a T5 with its own tokenizer."""

    def __init__(self, name: str, sha256: str, model: Any, tokenizer: Any, max_tokens: int) -> None:
        self.name = name
        self.sha256 = sha256
        self.max_tokens = max_tokens
        self._model = model
        self._tokenizer = tokenizer

    @property
    def dim(self) -> int:
        return int(self._model.config.d_model)

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> list[Encoded]:
        texts = [caption.lower().strip() for caption in captions]
        with quiet_transformers(KEY, self.name):
            whole = self._tokenizer(texts, add_special_tokens=True)["input_ids"]
            tokens = self._tokenizer(
                texts,
                add_special_tokens=True,
                truncation=True,
                max_length=self.max_tokens,
                padding="longest",
                return_attention_mask=True,
                return_tensors="pt",
            )
        seen_BT = tokens["attention_mask"].bool()
        device = self._model.device
        found = self._model(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        )
        features_BTE = found.last_hidden_state.half().cpu()
        encoded = []
        for caption, features_TE, seen_T, uncut in zip(captions, features_BTE, seen_BT, whole, strict=True):
            kept_TE = features_TE[seen_T]
            if not torch.isfinite(kept_TE).all():
                shown = caption if len(caption) < 60 else f"{caption[:60]}…"
                raise Failed(f"{self.name} gives features of {shown!r} that float16 cannot hold")
            encoded.append(Encoded(kept_TE, len(uncut)))
        return encoded

    @classmethod
    def load(cls, name: str, *, max_tokens: int, dtype: torch.dtype, device: torch.device | str) -> Self:
        """The encoder of a T5 from a folder, or from the Hugging Face Hub as `hf://OWNER/REPOSITORY[@REVISION]`.

        Args:
            name: which one.
            max_tokens: longer captions are cut.
            dtype: of its weights and its arithmetic.
            device: where it computes.

        Raises:
            Refused: there is none, it is no T5, its weights do not fit, or transformers is not installed.
            Failed: the download failed.
        """
        folder = pretrained_folder(KEY, name)
        config = model_config(KEY, folder, MODEL_TYPES, ("d_model", "vocab_size"))
        _refuse_missing_tokenizer(folder)
        with quiet_transformers(KEY, name) as transformers:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, info = transformers.T5EncoderModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                # Told, and refused in our own words.
                ignore_mismatched_sizes=True,
                dtype=dtype,
                output_loading_info=True,
            )
            end = tokenizer("")["input_ids"]
        refuse_misfits(KEY, name, info, DECODER)
        if (
            end != [config.get("eos_token_id", 1)]
            or max(tokenizer.get_vocab().values()) >= config["vocab_size"]
        ):
            raise Refused(f"{KEY}: the tokenizer in {folder} is not the one of its model")
        return cls(
            name, folder_sha256(folder), model.to(device).eval().requires_grad_(False), tokenizer, max_tokens
        )


def _refuse_missing_tokenizer(folder: Path) -> None:
    """Confirms that a folder holds a tokenizer: without one, transformers makes one that knows no words, in silence.

    Raises:
        Refused: it holds none.
    """
    settings = folder / "tokenizer_config.json"
    reads_bytes = settings.is_file() and BYTES in settings.read_text("utf-8", "replace")
    if not reads_bytes and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise Refused(f"{KEY}: {folder} holds no tokenizer: neither {' nor '.join(TOKENIZER_FILES)}")


def describe(name: str) -> tuple[str, int]:
    """sha256 and number of features of a T5; nothing of it is loaded, and transformers need not be there.

    Raises:
        Refused, Failed: as `T5Encoder.load`.
    """
    folder = pretrained_folder(KEY, name)
    config = model_config(KEY, folder, MODEL_TYPES, ("d_model", "vocab_size"))
    # Planning is the time: what is put there later changes the sha256, and with it the data set.
    _refuse_missing_tokenizer(folder)
    return folder_sha256(folder), int(config["d_model"])
