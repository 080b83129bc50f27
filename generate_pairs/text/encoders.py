"""From names and records to text encoders, and to the features of a data set's captions."""

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
"""Of a lineage: the record of the encoder."""


def requested_encoder(
    config: CaptionsConfig, teacher: Teacher, recorded: EncoderSpec | None = None
) -> EncoderSpec:
    """The encoder that the settings name, as a text-conditional teacher needs it; nothing of it is loaded.

    Args:
        config: the settings.
        teacher: that takes its features.
        recorded: of the data set that is there. Where the settings name the same one, or none, it need not be here:
            whoever encodes a caption holds its sha256 against the record.

    Raises:
        Refused: there is none of that name, or its features are not those that the teacher takes.
    """
    takes = teacher.transformer.config
    name = config.with_absolute_paths().encoder
    if recorded is not None and (name is None or recorded.name in (name, os.path.abspath(name))):
        return recorded if name is None else replace(recorded, dtype=config.encoder_dtype)
    if name is None:
        raise Refused(
            "captions.encoder: this teacher needs a text encoder: hf://OWNER/REPOSITORY or the folder of a T5, as in "
            f"--set captions.encoder=hf://google/flan-t5-xl, or one that ships: "
            f"{', '.join(small_encoder.embedded_names())}"
        )
    sha256, dim = described(name)
    if dim != takes.caption_dim:
        raise Refused(
            f"captions.encoder: {name} makes features of {dim} numbers, and this teacher takes "
            f"{takes.caption_dim}: give the encoder that it was trained with"
        )
    return EncoderSpec(name, sha256, config.encoder_dtype, takes.num_condition_tokens, dim)


def described(name: str) -> tuple[str, int]:
    """sha256 and number of features of the encoder of a name; nothing of a T5 is loaded.

    Raises:
        Refused: there is none.
    """
    return (small_encoder if _is_small(name) else t5).describe(name)


def open_encoder(spec: EncoderSpec, device: torch.device | str = "cpu") -> TextEncoder:
    """Load the encoder of a record.

    Raises:
        Refused: it is not here, or the one of that name is another.
    """
    loader = small_encoder.SmallEncoder if _is_small(spec.name) else t5.T5Encoder
    found = loader.load(
        spec.name, max_tokens=spec.max_tokens, dtype=getattr(torch, spec.dtype), device=device
    )
    if found.sha256 != spec.sha256:
        raise Refused(
            f"the text encoder {spec.name} has sha256 {found.sha256[:12]}, and captions were encoded by "
            f"{spec.sha256[:12]}: put the same one there"
        )
    return found


def recorded_encoder(lineage: Mapping[str, Any]) -> EncoderSpec:
    """The encoder that a lineage records."""
    return EncoderSpec(**lineage[ENCODER_KEY])


def texts_of_pairs(root: Location, spec: PairSpec, device: torch.device | str = "cpu") -> TextFeatures:
    """The captions of a data set, whose features lie beside its shards; `device` is where missing ones are computed.

    Raises:
        Refused, Failed: the list of captions is missing or damaged.
    """
    return texts_of(load_captions(root, spec), recorded_encoder(spec.lineage), root / FOLDER, device)


def texts_of(
    captions: Sequence[str], spec: EncoderSpec, folder: Location, device: torch.device | str = "cpu"
) -> TextFeatures:
    """Captions whose features lie in a folder, or will."""
    return TextFeatures(folder, captions, spec, lambda spec: open_encoder(spec, device))


def _is_small(name: str) -> bool:
    return name.startswith(TINY) or name.endswith(".safetensors") or name in small_encoder.embedded_names()
