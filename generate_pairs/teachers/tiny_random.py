"""Published teachers made small, with random weights: the same architecture, scales and tokens, on any laptop.

They try a preset out, from the first pair to the last image, before anyone has downloaded or paid for anything; what
they draw is noise.
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
WIDTH = 64
DEPTH = 2
NUM_HEADS = 2
NUM_CLASSES = 10


def tiny_teacher(name: str) -> tuple[str, Teacher]:
    """A published teacher made small: its family and the teacher, the same numbers whenever it is asked for.

    Token layout, codebook dimension and the way of conditioning stay; widths, depth, vocabulary, classes and the
    resolution of images (twice the latent map's) shrink.

    Raises:
        Refused: no teacher of that name is published.
    """
    if name not in TEACHERS:
        raise Refused(
            f"teacher.name: {TINY}{name} is not known: published teachers are {', '.join(TEACHERS)}"
        )
    published = TEACHERS[name]
    transformer, tokenizer = published.transformer.config, published.tokenizer.config
    latent_size = tokenizer.image_size // tokenizer.downsampling
    small_transformer = replace(
        transformer,
        width=WIDTH,
        depth=DEPTH,
        num_heads=NUM_HEADS,
        vocab_size=VOCAB_SIZE,
        num_classes=NUM_CLASSES,
    )
    small_tokenizer = replace(
        tokenizer, vocab_size=VOCAB_SIZE, ch=32, ch_mult=(1, 1), num_res_blocks=1, image_size=2 * latent_size
    )
    # On the meta device no layer draws weights of its own, which would come from the global generator.
    with on_meta_device():
        teacher = build_teacher(published.family, asdict(small_transformer), asdict(small_tokenizer))
    weights = {key: drawn(key, tensor) for key, tensor in teacher.state_dict().items()}
    teacher.load_state_dict(weights, assign=True)
    return published.family, teacher


def drawn(name: str, like: Tensor) -> Tensor:
    """A tensor drawn by its name alone, of a shape and dtype: matrices keep the size of what they map, the factors of
    normalisations lie near 1, biases near 0.

    The codebook's rows are as large as noise, so that the flow map has something to decide.
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    values = np.random.Generator(np.random.Philox(key=key)).standard_normal(like.shape)
    if like.ndim < 2:
        return torch.from_numpy((0.0 if name.endswith("bias") else 1.0) + 0.02 * values).to(like.dtype)
    fan_in = 1 if name.endswith("quantize.embedding.weight") else math.prod(like.shape[1:])
    return torch.from_numpy(values / math.sqrt(fan_in)).to(like.dtype)
