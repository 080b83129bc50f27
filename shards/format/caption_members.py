"""Captions in shards: the last member of a sample, KEY.txt, whose size is its own, and so where each sample begins.

Everything in a tar begins at a multiple of 512 bytes. So the rest of the samples can be taken for a matrix all the same,
one whose rows begin at given blocks.
"""

from __future__ import annotations

import numpy as np

from shards.core.errors import Failed
from shards.format.pairs import KEY_DIGITS
from shards.format.spec import Array, PairSpec
from shards.format.tar_layout import BLOCK, Layout, archive_size, layout_of, tar_header

EXTENSION = "txt"
_SIZE = slice(124, 135)
"""Of a header, the octal digits of a member's size."""


def first_blocks(spec: PairSpec, data: Array, num_pairs: int) -> Array:
    """The block at which each sample begins, and the one after the last sample: (num_pairs + 1,) int64.

    Args:
        spec: the data set's spec.
        data: uint8, the whole file.
        num_pairs: in it.

    Raises:
        Failed: the file has another size than such samples make, or a caption's size is no number.
    """
    stride = layout_of(spec).stride // BLOCK
    has_captions = spec.captions is not None
    blocks = _with_captions(data, num_pairs, stride) if has_captions else np.arange(num_pairs + 1) * stride
    expected = archive_size(int(blocks[-1]) * BLOCK)
    if len(data) != expected:
        raise Failed(f"{num_pairs} pairs make {expected} bytes, not {len(data)}")
    return blocks


def _with_captions(data: Array, num_pairs: int, stride: int) -> Array:
    blocks = np.zeros(num_pairs + 1, dtype=np.int64)
    total = len(data) // BLOCK
    for place in range(num_pairs):
        header = int(blocks[place]) + stride
        if header >= total:
            raise Failed(f"{num_pairs} pairs make more than {len(data)} bytes")
        digits = data[header * BLOCK :][_SIZE].tobytes()
        if not digits.isdigit() or b"8" in digits or b"9" in digits:
            raise Failed(f"the caption of its sample {place} has no size")
        blocks[place + 1] = header + 1 + -(-int(digits, 8) // BLOCK)
    return blocks


def sample_rows(layout: Layout, data: Array, blocks: Array) -> Array:
    """The samples without captions, (B, stride) uint8: a view of the file where they follow each other, else a copy.

    Args:
        layout: the data set's layout.
        data: uint8, the whole file.
        blocks: as `first_blocks` gives them.
    """
    stride = layout.stride // BLOCK
    if blocks[-1] == (len(blocks) - 1) * stride:
        return data[: int(blocks[-1]) * BLOCK].reshape(-1, layout.stride)
    in_blocks = data[: len(data) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return in_blocks[blocks[:-1, None] + np.arange(stride)].reshape(-1, layout.stride)


def read_texts(layout: Layout, data: Array, blocks: Array, index_B: Array) -> Array:
    """The captions (B,), str as objects, once all that frames them is what the writer puts there.

    Args:
        layout: the data set's layout.
        data: uint8, the whole file.
        blocks: as `first_blocks` gives them.
        index_B: the pair_index that each sample should carry.

    Raises:
        Failed: bytes that the writer would not have written.
    """
    texts = np.empty(len(index_B), dtype=object)
    starts, ends = blocks[:-1] * BLOCK + layout.stride, blocks[1:] * BLOCK
    for place, (index, start, end) in enumerate(
        zip(index_B.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ):
        header, content = data[start : start + BLOCK].tobytes(), data[start + BLOCK : end].tobytes()
        size = int(header[_SIZE], 8)
        if header != tar_header(f"{index:0{KEY_DIGITS}d}.{EXTENSION}", size) or any(content[size:]):
            raise Failed(f"the sample of pair {index} is not laid out as one of this data set")
        try:
            texts[place] = content[:size].decode()
        except UnicodeDecodeError as error:
            raise Failed(f"the caption of pair {index} is no UTF-8") from error
    return texts
