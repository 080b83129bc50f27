"""Pairs as images: what the teacher's tokenizer makes of their tokens, class by class."""

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

SHOWN_CHARACTERS = 40
"""Of a caption."""


def preview_grid(
    manifest: Manifest, tokenizer: Tokenizer, labels: Sequence[int], columns: int
) -> Image.Image:
    """The first pairs of each class as a grid of decoded images, one class or caption a row, its label beside it.

    Args:
        manifest: of the data set.
        tokenizer: of the teacher that made it.
        labels: the classes, or the numbers of captions.
        columns: pairs of each.

    Raises:
        Refused: a class that the data set does not have, or has no pair of yet.
        Failed: a shard is broken.
    """
    unknown = [label for label in labels if not 0 <= label < manifest.spec.num_classes]
    if unknown:
        raise Refused(f"there is no label {unknown[0]}: they are 0 .. {manifest.spec.num_classes - 1}")
    tokens = first_tokens(manifest, labels, columns)
    absent = [label for label, rows in tokens.items() if not rows]
    if absent:
        raise Refused(f"{manifest.root} holds no pair of label {absent[0]} yet")
    captions = None if manifest.spec.captions is None else load_captions(manifest.root, manifest.spec)
    names = {
        label: str(label) if captions is None else f"{label}: {_short(captions[label])}" for label in tokens
    }
    return captioned_grid({names[label]: _decoded(tokenizer, rows) for label, rows in tokens.items()})


def first_tokens(manifest: Manifest, labels: Sequence[int], columns: int) -> dict[int, list[Array]]:
    """Token sequences of the first `columns` pairs of each class; reads no more shards than that takes."""
    found: dict[int, list[Array]] = {label: [] for label in labels}
    for row in manifest.rows:
        if all(len(rows) == columns for rows in found.values()):
            break
        pairs = read_shard(manifest.root, manifest.spec, row)
        for label, rows in found.items():
            rows.extend(pairs.tokens_BL[pairs.label_B == label][: columns - len(rows)])
    return found


def _short(caption: str) -> str:
    """A caption on one line, as long as a grid has room for."""
    line = " ".join(caption.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"


@torch.inference_mode()
def _decoded(tokenizer: Tokenizer, rows: Sequence[Array]) -> torch.Tensor:
    tokens_BL = torch.from_numpy(np.stack(rows).astype(np.int64)).to(tokenizer.codebook_VC.device)
    return to_unit_range(tokenizer.decode(tokenizer.embed(tokens_BL)))
