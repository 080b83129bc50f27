"""Captions in shards: KEY.txt is the last member of a sample. Its size varies, so samples start at irregular offsets.

Every member of a tar starts at a multiple of 512 bytes (a block). If the captions are left out, the samples are
therefore still the rows of a matrix, with a given first block for each row.
"""

from __future__ import annotations

import numpy as np

from shards.core.errors import Failed
from shards.format.pairs import KEY_DIGITS
from shards.format.spec import Array, PairSpec
from shards.format.tar_layout import BLOCK, Layout, archive_size, layout_of, tar_header

_SIZE = slice(124, 135)
"""Bytes of a tar header that contain the octal digits of the member's size."""


def sample_blocks(spec: PairSpec, data: Array, num_pairs: int) -> Array:
    """The first block of each sample in a file (uint8), and the block after the last: (num_pairs + 1,) int64.

    Raises `Failed` if the file has the wrong size, or the size of a caption is not a number.
    """
    stride = layout_of(spec).stride // BLOCK
    blocks = np.arange(num_pairs + 1) * stride
    if spec.captions is not None:
        blocks = _blocks_with_captions(data, num_pairs, stride)
    expected = archive_size(int(blocks[-1]) * BLOCK)
    if len(data) != expected:
        raise Failed(f"{num_pairs} pairs take {expected} bytes, not {len(data)}")
    return blocks


def _blocks_with_captions(data: Array, num_pairs: int, stride: int) -> Array:
    blocks = np.zeros(num_pairs + 1, dtype=np.int64)
    total = len(data) // BLOCK
    for place in range(num_pairs):
        header = int(blocks[place]) + stride
        if header >= total:
            raise Failed(f"{num_pairs} pairs take more than {len(data)} bytes")
        digits = data[header * BLOCK :][_SIZE].tobytes()
        if not digits.isdigit() or b"8" in digits or b"9" in digits:
            raise Failed(f"the caption of sample {place} has no valid size")
        blocks[place + 1] = header + 1 + -(-int(digits, 8) // BLOCK)
    return blocks


def sample_rows(layout: Layout, data: Array, blocks: Array) -> Array:
    """The samples without captions, (B, stride) uint8, of a file (uint8) with the blocks that `sample_blocks` returns.

    The result is a view of the file if the samples are contiguous, otherwise a copy.
    """
    stride = layout.stride // BLOCK
    if blocks[-1] == (len(blocks) - 1) * stride:
        return data[: int(blocks[-1]) * BLOCK].reshape(-1, layout.stride)
    in_blocks = data[: len(data) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return in_blocks[blocks[:-1, None] + np.arange(stride)].reshape(-1, layout.stride)


def read_texts(layout: Layout, data: Array, blocks: Array, index_B: Array) -> Array:
    """The captions (B,), str as objects, of a file (uint8) with the blocks that `sample_blocks` returns.

    `index_B` is the expected pair_index of each sample. Raises `Failed` if the writer would have written other bytes.
    """
    texts = np.empty(len(index_B), dtype=object)
    starts, ends = blocks[:-1] * BLOCK + layout.stride, blocks[1:] * BLOCK
    for place, (index, start, end) in enumerate(zip(index_B.tolist(), starts.tolist(), ends.tolist(), strict=True)):
        header, content = data[start : start + BLOCK].tobytes(), data[start + BLOCK : end].tobytes()
        size = int(header[_SIZE], 8)
        if header != tar_header(f"{index:0{KEY_DIGITS}d}.txt", size) or any(content[size:]):
            raise Failed(f"the sample of pair {index} does not have the layout of this data set")
        try:
            texts[place] = content[:size].decode()
        except UnicodeDecodeError as error:
            raise Failed(f"the caption of pair {index} is not UTF-8") from error
    return texts
