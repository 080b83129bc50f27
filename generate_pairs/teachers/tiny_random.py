"""Published teachers made small, with random weights: the same architecture, scales and number of tokens.

With them a preset can be tested from the first pair to the last image on any laptop, without a download. Their images
are noise.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from generate_pairs.config import TINY
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.published import TEACHERS
from generate_pairs.teachers.registry import build_teacher
from shards.core.errors import Refused

VOCAB_SIZE = 1024
NUM_CLASSES = 10


def tiny_teacher(name: str) -> tuple[str, Teacher]:
    """The family of a published teacher and a small version of it; every call returns the same weights.

    Token layout, codebook dimension and the kind of condition stay; widths, depth, vocabulary, number of classes and
    image resolution (twice that of the latent map) shrink.

    Raises:
        Refused: no published teacher has that name.
    """
    if name not in TEACHERS:
        raise Refused(f"teacher.name: {TINY}{name} is unknown: published teachers are {', '.join(TEACHERS)}")
    published = TEACHERS[name]
    transformer, tokenizer = published.transformer.config, published.tokenizer.config
    latent_size = tokenizer.image_size // tokenizer.downsampling
    small_transformer = replace(
        transformer, width=64, depth=2, num_heads=2, vocab_size=VOCAB_SIZE, num_classes=NUM_CLASSES
    )
    small_tokenizer = replace(
        tokenizer, vocab_size=VOCAB_SIZE, ch=32, ch_mult=(1, 1), num_res_blocks=1, image_size=2 * latent_size
    )
    # On the meta device no layer draws initial weights, which would advance the global random generator.
    with on_meta_device():
        teacher = build_teacher(published.family, asdict(small_transformer), asdict(small_tokenizer))
    weights = {key: random_like(key, tensor) for key, tensor in teacher.state_dict().items()}
    teacher.load_state_dict(weights, assign=True)
    return published.family, teacher


def random_like(name: str, like: Tensor) -> Tensor:
    """A random tensor of the shape and dtype of `like`, seeded by its name.

    Matrices preserve the variance of their input, normalisation factors are near 1, biases near 0. Codebook rows are
    as large as noise, so that the noise decides the token.
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    values = np.random.Generator(np.random.Philox(key=key)).standard_normal(like.shape)
    if like.ndim < 2:
        return torch.from_numpy((0.0 if name.endswith("bias") else 1.0) + 0.02 * values).to(like.dtype)
    fan_in = 1 if name.endswith("quantize.embedding.weight") else math.prod(like.shape[1:])
    return torch.from_numpy(values / math.sqrt(fan_in)).to(like.dtype)
