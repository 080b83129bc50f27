"""The bytes around the payloads of a shard: where the members of a sample lie, and what frames them.

All samples of a shard have the same members of the same sizes, so the tar is a matrix with one sample a row,
and a whole shard can be held against its expected frame without touching one sample at a time.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass

import numpy as np

from shards.record import KEY_DIGITS, Array, PairSpec

TAR_OWNER = "onestep"
TAR_MODE = 0o444
_BLOCK = tarfile.BLOCKSIZE
_CHECKSUM = slice(148, 154)
_LABEL_DIGITS = 19


@dataclass(frozen=True)
class Member:
    """One file of a sample: its header block starts at `offset` of the row, its payload one block later.

    Attributes:
        extension: what follows the sample's key and a dot in its name.
        offset: bytes from the start of the sample to the member's tar header.
        prefix: the constant bytes that its content starts with (the npy header).
        num_bytes: size of the content after the prefix; 0 for the label, whose text varies within one block.
    """

    extension: str
    offset: int
    prefix: bytes
    num_bytes: int

    @property
    def size(self) -> int:
        """Bytes of the file in the tar."""
        return len(self.prefix) + self.num_bytes

    @property
    def data(self) -> slice:
        """Columns of the row that hold the content after the prefix."""
        start = self.offset + _BLOCK + len(self.prefix)
        return slice(start, start + self.num_bytes)

    @property
    def stop(self) -> int:
        """Where the next member starts."""
        blocks = max(1, -(-self.size // _BLOCK))
        return self.offset + _BLOCK + blocks * _BLOCK


@dataclass(frozen=True)
class Layout:
    """The members of every sample of a data set, in the order in which they lie in the tar."""

    label: Member
    noise: Member
    tokens: Member

    @property
    def stride(self) -> int:
        """Bytes of one sample, headers and padding included."""
        return self.tokens.stop

    def num_bytes(self, num_pairs: int) -> int:
        """Bytes of a whole shard: a tar ends with two empty blocks and fills its last record."""
        content = num_pairs * self.stride + 2 * _BLOCK
        return -(-content // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def layout_of(spec: PairSpec) -> Layout:
    """Where everything lies in the shards of a data set; WebDataset sorts a sample's members by extension."""
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


def read_labels(layout: Layout, rows: Array) -> Array:
    """Labels (B,) int64 out of the samples' bytes (B, stride).

    Raises:
        ValueError: a label that is not a number.
    """
    start = layout.label.offset + _BLOCK
    text = np.ascontiguousarray(rows[:, start : start + _LABEL_DIGITS])
    return text.view(f"S{_LABEL_DIGITS}")[:, 0].astype(np.int64)


def misframed_rows(layout: Layout, rows: Array, index_B: Array, label_B: Array) -> Array:
    """Places of the samples whose names, headers or padding are not what the writer puts around such pairs.

    Args:
        layout: the data set's layout.
        rows: (B, stride) uint8, the samples' bytes.
        index_B: the pair_index that each sample should carry.
        label_B: the labels as `read_labels` found them.
    """
    keys = _decimal(index_B + 10**KEY_DIGITS, KEY_DIGITS + 1)[:, 1:]
    labels = _decimal(label_B, _LABEL_DIGITS)
    label_sizes = np.count_nonzero(labels, axis=1)
    label_start = layout.label.offset + _BLOCK
    wrong = _differ(rows[:, layout.label.offset : label_start], _headers(layout.label, keys, label_sizes))
    wrong |= _differ(rows[:, label_start : label_start + _LABEL_DIGITS], labels)
    wrong |= rows[:, label_start + _LABEL_DIGITS : layout.label.stop].any(axis=1)
    for member in (layout.noise, layout.tokens):
        wrong |= ~holds_member(member, rows, index_B)
        wrong |= rows[:, member.data.stop : member.stop].any(axis=1)
    return np.flatnonzero(wrong)


def holds_member(member: Member, rows: Array, index_B: Array) -> Array:
    """Which samples (B,) hold this member, noise or tokens, where it belongs: its header and prefix are whole.

    Args:
        member: of the data set's layout.
        rows: (B, stride) uint8, the samples' bytes.
        index_B: the pair_index that each sample should carry.
    """
    keys = _decimal(index_B + 10**KEY_DIGITS, KEY_DIGITS + 1)[:, 1:]
    start = member.offset + _BLOCK
    header = _headers(member, keys, np.full(len(rows), member.size))
    wrong = _differ(rows[:, member.offset : start], header)
    wrong |= _differ(rows[:, start : member.data.start], np.frombuffer(member.prefix, dtype=np.uint8))
    return ~wrong


def _headers(member: Member, keys: Array, sizes: Array) -> Array:
    """Tar headers (B, 512) of one member: those of key 0, with each sample's own key and checksum put in."""
    distinct, which = np.unique(sizes, return_inverse=True)
    first_key = "0" * KEY_DIGITS
    templates = np.stack(
        [
            np.frombuffer(_tar_header(f"{first_key}.{member.extension}", int(size)), dtype=np.uint8)
            for size in distinct
        ]
    )
    headers = templates[which]
    headers[:, :KEY_DIGITS] = keys
    # A tar checksum is the sum of the header's bytes with blanks in the checksum's own place (8 bytes).
    totals = (
        headers.sum(axis=1, dtype=np.int64) - headers[:, 148:156].sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    )
    headers[:, _CHECKSUM] = (totals[:, None] >> np.arange(15, -1, -3)) % 8 + ord("0")
    return headers


def _tar_header(name: str, num_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = num_bytes, TAR_MODE, 0
    info.uname = info.gname = TAR_OWNER
    return info.tobuf(tarfile.USTAR_FORMAT)


def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _decimal(numbers: Array, width: int) -> Array:
    """ASCII digits (B, width) uint8 of whole numbers, left-aligned, zero bytes after them."""
    return numbers.astype(f"S{width}").view(np.uint8).reshape(len(numbers), width)


def _differ(found: Array, expected: Array) -> Array:
    """Which rows differ (B,) bool."""
    return (found != expected).any(axis=1)
