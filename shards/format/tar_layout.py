"""The layout of a shard: the offsets of a sample's members, and the headers and padding around their payloads.

All samples of a shard have the same members of the same sizes. The tar is therefore a matrix with one sample per row,
and the headers of all samples are checked at once. With captions, each sample ends with one more member of variable
size (`shards.format.caption_members`); the other members still form such a matrix.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards.format.pairs import KEY_DIGITS
from shards.format.spec import Array, PairSpec

TAR_OWNER = "onestep"
"""The project's original name. It is part of the bytes of every shard, so it never changes."""
TAR_MODE = 0o444
BLOCK = tarfile.BLOCKSIZE
# Columns of a tar header: start of the six checksum digits, and end of the octal size.
_CHECKSUM = 148
_SIZE_END = 135
_LABEL_DIGITS = 19
_POWERS_OF_TEN = 10 ** np.arange(1, _LABEL_DIGITS, dtype=np.int64)


@dataclass(frozen=True)
class Member:
    """One file of a sample: a header block at `offset` of the row, followed by its payload."""

    extension: str  # the file's name after the sample's key and a dot
    offset: int
    prefix: bytes  # constant bytes at the start of the content (the npy header)
    num_bytes: int  # size of the content after the prefix; 0 for the label, whose text varies within one block

    @property
    def size(self) -> int:
        """Bytes of the file in the tar."""
        return len(self.prefix) + self.num_bytes

    @property
    def data(self) -> slice:
        """Columns of the row that contain the content after the prefix."""
        start = self.offset + BLOCK + len(self.prefix)
        return slice(start, start + self.num_bytes)

    @property
    def checksum(self) -> slice:
        """Columns of the checksum's digits in the member's header."""
        return slice(self.offset + _CHECKSUM, self.offset + _CHECKSUM + 6)

    @property
    def stop(self) -> int:
        """Offset of the next member."""
        blocks = max(1, -(-self.size // BLOCK))
        return self.offset + BLOCK + blocks * BLOCK


@dataclass(frozen=True)
class Layout:
    """The members of every sample of a data set, in their order in the tar."""

    label: Member
    noise: Member
    tokens: Member

    @property
    def members(self) -> tuple[Member, ...]:
        return self.label, self.noise, self.tokens

    @property
    def stride(self) -> int:
        """Bytes of one sample with headers and padding, without its caption."""
        return self.tokens.stop


def archive_size(num_sample_bytes: int) -> int:
    """Size of a tar whose samples take `num_sample_bytes`: two empty blocks follow, and the last record is filled."""
    return -(-(num_sample_bytes + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def layout_of(spec: PairSpec) -> Layout:
    """The layout of a data set's shards. WebDataset sorts a sample's members by extension."""
    label_member = Member("cls", 0, b"", 0)
    num_tokens, codebook_dim = spec.noise_shape
    if spec.noise == "counter":
        noise_member = Member("crc", label_member.stop, b"", 4)
    else:
        prefix = _npy_header("<f2", spec.noise_shape)
        noise_member = Member("noise.npy", label_member.stop, prefix, 2 * num_tokens * codebook_dim)
    token_dtype = spec.token_dtype.newbyteorder("<")
    prefix = _npy_header(token_dtype.str, (num_tokens,))
    tokens_member = Member("tokens.npy", noise_member.stop, prefix, token_dtype.itemsize * num_tokens)
    return Layout(label_member, noise_member, tokens_member)


def bytes_per_pair(spec: PairSpec) -> int:
    """Bytes of one pair in a shard with the tar's headers and padding, assuming that a caption takes one block."""
    return layout_of(spec).stride + (0 if spec.captions is None else 2 * BLOCK)


def read_labels(layout: Layout, rows: Array) -> Array:
    """Parse the labels (B,) int64 from the samples' bytes (B, stride). Raises ValueError if one is not a number."""
    start = layout.label.offset + BLOCK
    text = np.ascontiguousarray(rows[:, start : start + _LABEL_DIGITS])
    return text.view(f"S{_LABEL_DIGITS}")[:, 0].astype(np.int64)


def misframed_rows(layout: Layout, rows: Array, index_B: Array, label_B: Array) -> Array:
    """Positions of the samples (B, stride) uint8 whose names, headers or padding differ from what the writer writes.

    `index_B` is the expected pair_index of each sample, `label_B` the result of `read_labels`.
    """
    label_sizes = 1 + np.searchsorted(_POWERS_OF_TEN, label_B, side="right")
    is_intact_B = has_intact_header(layout, layout.label, rows, index_B, label_sizes)
    text = label_B.astype(f"S{_LABEL_DIGITS}").view(np.uint8).reshape(len(rows), _LABEL_DIGITS)
    end = layout.label.data.stop + _LABEL_DIGITS
    is_intact_B &= (rows[:, layout.label.data.stop : end] == text).all(axis=1)
    is_intact_B &= ~rows[:, end : layout.label.stop].any(axis=1)
    for member in (layout.noise, layout.tokens):
        is_intact_B &= has_intact_header(layout, member, rows, index_B)
        is_intact_B &= ~rows[:, member.data.stop : member.stop].any(axis=1)
    return np.flatnonzero(~is_intact_B)


def has_intact_header(
    layout: Layout, member: Member, rows: Array, index_B: Array, label_sizes: Array | None = None
) -> Array:
    """Which samples (B, stride) uint8 have this member at its place with an intact header and prefix: (B,) bool.

    `index_B` is the expected pair_index of each sample; `label_sizes` the bytes of each label, whose header states them.
    """
    columns = slice(member.offset, member.data.start)
    expected = np.tile(_template(layout)[columns], (len(rows), 1))
    keys = _digits(index_B, 10, KEY_DIGITS)
    # A tar checksum is the sum of the header's bytes: that of key 0 plus the sum of the digits.
    checksums = _checksum(layout, member) + keys.sum(axis=1, dtype=np.int64) - KEY_DIGITS * ord("0")
    if label_sizes is not None:
        size_digits = np.stack([label_sizes // 8, label_sizes % 8], axis=1)
        expected[:, _SIZE_END - 2 : _SIZE_END] = size_digits + ord("0")
        checksums += size_digits.sum(axis=1)
    expected[:, :KEY_DIGITS] = keys
    expected[:, _CHECKSUM : _CHECKSUM + 6] = _digits(checksums, 8, 6)
    return (rows[:, columns] == expected).all(axis=1)


@lru_cache(maxsize=8)
def _template(layout: Layout) -> Array:
    """The sample of key 0 with an empty label and payloads of zero bytes, (stride,) uint8, read-only."""
    template = np.zeros(layout.stride, dtype=np.uint8)
    for member in layout.members:
        content = tar_header(f"{'0' * KEY_DIGITS}.{member.extension}", member.size) + member.prefix
        template[member.offset : member.offset + len(content)] = np.frombuffer(content, dtype=np.uint8)

    template.flags.writeable = False
    return template


def _checksum(layout: Layout, member: Member) -> int:
    """The checksum in the template's header of a member, which has key 0."""
    return int(_template(layout)[member.checksum].tobytes(), 8)


def tar_header(name: str, num_bytes: int) -> bytes:
    """The tar header of a file in a shard."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = num_bytes, TAR_MODE, 0
    info.uname = info.gname = TAR_OWNER
    return info.tobuf(tarfile.USTAR_FORMAT)


def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _digits(numbers: Array, base: int, count: int) -> Array:
    """The last `count` ASCII digits (B, count) of integers in a base, padded with zeros."""
    digits = np.empty((len(numbers), count), dtype=np.uint8)
    for place in reversed(range(count)):
        # Division by a scalar is several times faster than by an array of powers.
        rest = numbers // base
        digits[:, place] = numbers - rest * base + ord("0")
        numbers = rest
    return digits
