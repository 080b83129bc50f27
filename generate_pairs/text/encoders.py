"""Opens text encoders by name or record, and the features of a data set's captions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from generate_pairs.config import TINY, CaptionsConfig
from generate_pairs.teachers.base import Teacher
from generate_pairs.text import small_t5_encoder as small_encoder
from generate_pairs.text import t5_encoder as t5
from generate_pairs.text.base import TextEncoder
from generate_pairs.text.feature_store import FOLDER, EncoderSpec, TextFeatures
from shards.core.errors import Refused
from shards.dataset.captions import load_captions
from shards.format.spec import PairSpec
from shards.storage.paths import Location

ENCODER_KEY = "text_encoder"
"""Key of a lineage: the record of the encoder."""


def requested_encoder(config: CaptionsConfig, teacher: Teacher, recorded: EncoderSpec | None = None) -> EncoderSpec:
    """The encoder that the settings name, for a text-conditional teacher; loads no weights.

    If the settings name the `recorded` encoder of the existing data set, or none, it need not be on this machine: its
    sha256 is checked when it is loaded.

    Raises:
        Refused: the encoder is missing, or its features do not fit the teacher.
    """
    teacher_config = teacher.transformer.config
    name = config.with_absolute_paths().encoder
    if recorded is not None and (name is None or recorded.name in (name, os.path.abspath(name))):
        return recorded if name is None else replace(recorded, dtype=config.encoder_dtype)
    if name is None:
        raise Refused(
            "captions.encoder: this teacher needs a text encoder: hf://OWNER/REPOSITORY or the folder of a T5, as in "
            "--set captions.encoder=hf://google/flan-t5-xl, or an embedded one: "
            f"{', '.join(small_encoder.embedded_names())}"
        )
    sha256, dim = describe_encoder(name)
    if dim != teacher_config.caption_dim:
        raise Refused(
            f"captions.encoder: the features of {name} have size {dim}, but this teacher needs size "
            f"{teacher_config.caption_dim}: give the encoder that it was trained with"
        )
    return EncoderSpec(name, sha256, config.encoder_dtype, teacher_config.num_condition_tokens, dim)


def describe_encoder(name: str) -> tuple[str, int]:
    """sha256 and feature size of an encoder; loads no weights of a T5.

    Raises:
        Refused: there is no such encoder.
    """
    return (small_encoder if _is_small(name) else t5).describe(name)


def open_encoder(spec: EncoderSpec, device: torch.device | str = "cpu") -> TextEncoder:
    """Load a recorded encoder.

    Raises:
        Refused: it is missing, or has another sha256.
    """
    loader = small_encoder.SmallEncoder if _is_small(spec.name) else t5.T5Encoder
    encoder = loader.load(spec.name, max_tokens=spec.max_tokens, dtype=getattr(torch, spec.dtype), device=device)
    if encoder.sha256 != spec.sha256:
        raise Refused(
            f"the text encoder {spec.name} has sha256 {encoder.sha256[:12]}, but the captions were encoded by "
            f"{spec.sha256[:12]}: restore that encoder"
        )
    return encoder


def recorded_encoder(lineage: Mapping[str, Any]) -> EncoderSpec:
    """The encoder that a lineage records."""
    return EncoderSpec(**lineage[ENCODER_KEY])


def dataset_caption_features(root: Location, spec: PairSpec, device: torch.device | str = "cpu") -> TextFeatures:
    """The features of a data set's captions, cached in its folder; `device` computes missing ones.

    Raises:
        Refused, Failed: the list of captions is missing or damaged.
    """
    return caption_features(load_captions(root, spec), recorded_encoder(spec.lineage), root / FOLDER, device)


def caption_features(
    captions: Sequence[str], spec: EncoderSpec, folder: Location, device: torch.device | str = "cpu"
) -> TextFeatures:
    """The features of captions, cached in a folder; `device` computes missing ones."""
    return TextFeatures(folder, captions, spec, lambda spec: open_encoder(spec, device))


def _is_small(name: str) -> bool:
    return name.startswith(TINY) or name.endswith(".safetensors") or name in small_encoder.embedded_names()
