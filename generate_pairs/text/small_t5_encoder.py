"""The small text encoders: embedded ones, trained ones in files, and one with random weights for trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from generate_pairs.config import ENCODERS, TINY
from generate_pairs.teachers.checkpoints import load_strictly
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.tiny_random import random_like
from generate_pairs.text.base import Encoded, TextEncoder
from generate_pairs.text.small_t5 import PADDING, SmallT5, SmallT5Config, SmallTokenizer, pad_tokens
from shards.core.errors import Failed, Refused
from shards.storage.files import commit_file, sha256_bytes, sha256_file
from shards.storage.paths import expand_home

HEADER = "onestep_text_encoder"
"""Key of the file's header; existing files contain the project's former name."""


class SmallEncoder(TextEncoder):
    """A `SmallT5` as a `TextEncoder`."""

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> list[Encoded]:
        token_lists = list(map(self.tokenizer, captions))
        tokens_BT = pad_tokens(token_lists, self.max_tokens).to(self.model.shared.weight.device)
        features_BTE = self.model(tokens_BT).half().cpu()
        if not torch.isfinite(features_BTE[tokens_BT.cpu() != PADDING]).all():
            raise Failed(f"the text encoder {self.name} gives features that float16 cannot hold")
        return [
            Encoded(features_TE[: min(len(tokens), self.max_tokens)].clone(), len(tokens))
            for features_TE, tokens in zip(features_BTE, token_lists, strict=True)
        ]

    @classmethod
    def load(cls, name: str, *, max_tokens: int, dtype: torch.dtype, device: torch.device | str) -> Self:
        """Load an embedded encoder, a file from `save_encoder`, or `tiny-random/E` with features of size E.

        Raises:
            Refused: the encoder is missing, or the file is not an encoder's.
        """
        model, sha256 = _load(name)
        model.to(device, dtype).eval().requires_grad_(False)
        return cls(name, sha256, model, SmallTokenizer(model.config), max_tokens)


def describe(name: str) -> tuple[str, int]:
    """sha256 and feature size of an encoder. Raises as `SmallEncoder.load`."""
    model, sha256 = _load(name)
    return sha256, model.config.width


def _load(name: str) -> tuple[SmallT5, str]:
    if not name.startswith(TINY):
        path = (
            expand_home("captions.encoder", name) if name.endswith(".safetensors") else ENCODERS / f"{name}.safetensors"
        )
        return _read(path), sha256_file(path)
    width = name.removeprefix(TINY)
    if not width.isdecimal() or not int(width):
        raise Refused(f"captions.encoder: {name} should be {TINY} and the size of a feature, as in {TINY}2048")
    model = tiny_random(int(width))
    return model, sha256_bytes(b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values()))


def embedded_names() -> tuple[str, ...]:
    """Names of the embedded text encoders."""
    return tuple(sorted(path.stem for path in ENCODERS.glob("*.safetensors")))


def tiny_random(width: int) -> SmallT5:
    """A byte encoder with random weights that depend only on the width."""
    with on_meta_device():
        model = SmallT5(SmallT5Config(width, depth=1, num_heads=2, head_dim=16, ffn_width=32))
    weights = {name: random_like(name, tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    return model


def save_encoder(model: SmallT5, path: Path, about: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Write an encoder to one file, with metadata about its training; its tensors are stored as `dtype`."""
    header = {"config": asdict(model.config), "about": dict(about)}
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    metadata = {HEADER: json.dumps(header, sort_keys=True)}
    commit_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _read(path: Path) -> SmallT5:
    if not path.is_file():
        raise Refused(f"captions.encoder: there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            config = SmallT5Config(**{**header["config"], "words": tuple(header["config"]["words"])})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"captions.encoder: {path} is not a text encoder of tokenleap ({error}): give the file that was trained "
            "with the teacher, the folder of a T5, or hf://OWNER/REPOSITORY"
        ) from error
    with on_meta_device():
        model = SmallT5(config)
    load_strictly(model, tensors, path)
    return model
