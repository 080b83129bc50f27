"""Pairs as images: their tokens decoded by the teacher's tokenizer, one class a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from distill.images import captioned_grid
from generate_pairs.teachers.base import Tokenizer, to_unit_range
from shards.core.errors import Refused
from shards.dataset.captions import load_captions
from shards.dataset.manifest import Manifest
from shards.dataset.reader import read_shard
from shards.format.spec import Array

CAPTION_CHARACTERS = 40
"""Longer captions are cut in the grid."""


def preview_grid(manifest: Manifest, tokenizer: Tokenizer, labels: Sequence[int], columns: int) -> Image.Image:
    """The first `columns` pairs of each class or caption as a grid of decoded images: a row for each, with its label.

    Raises:
        Refused: the data set does not have the class, or has no pair of it yet.
        Failed: a shard is damaged.
    """
    unknown = [label for label in labels if not 0 <= label < manifest.spec.num_classes]
    if unknown:
        raise Refused(f"there is no label {unknown[0]}: labels are 0 .. {manifest.spec.num_classes - 1}")
    tokens = first_tokens(manifest, labels, columns)
    absent = [label for label, rows in tokens.items() if not rows]
    if absent:
        raise Refused(f"{manifest.root} contains no pair of label {absent[0]} yet")
    captions = None if manifest.spec.captions is None else load_captions(manifest.root, manifest.spec)
    names = {label: str(label) if captions is None else f"{label}: {_short(captions[label])}" for label in tokens}
    return captioned_grid({names[label]: _decoded(tokenizer, rows) for label, rows in tokens.items()})


def first_tokens(manifest: Manifest, labels: Sequence[int], columns: int) -> dict[int, list[Array]]:
    """Token sequences of the first `columns` pairs of each class; reads only the shards that it needs."""
    tokens: dict[int, list[Array]] = {label: [] for label in labels}
    for row in manifest.rows:
        if all(len(rows) == columns for rows in tokens.values()):
            break
        pairs = read_shard(manifest.root, manifest.spec, row)
        for label, rows in tokens.items():
            rows.extend(pairs.tokens_BL[pairs.label_B == label][: columns - len(rows)])
    return tokens


def _short(caption: str) -> str:
    """A caption on one line, cut to the width of the grid."""
    line = " ".join(caption.split())
    return line if len(line) <= CAPTION_CHARACTERS else f"{line[: CAPTION_CHARACTERS - 1]}…"


@torch.inference_mode()
def _decoded(tokenizer: Tokenizer, rows: Sequence[Array]) -> torch.Tensor:
    tokens_BL = torch.from_numpy(np.stack(rows).astype(np.int64)).to(tokenizer.codebook_VC.device)
    return to_unit_range(tokenizer.decode(tokenizer.embed(tokens_BL)))
