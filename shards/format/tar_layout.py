"""The bytes around the payloads of a shard: where the members of a sample lie, and what frames them.

All samples of a shard have the same members of the same sizes, so the tar is a matrix with one sample a row,
and a whole shard can be held against its expected frame without touching one sample at a time. Where there are captions,
one more member of any size ends each sample (`shards.format.caption_members`); the rest is still such a matrix.
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
"""The project's first name: it is part of the bytes of every shard, so it never changes."""
TAR_MODE = 0o444
BLOCK = tarfile.BLOCKSIZE
# Columns of a tar header: where the six digits of the checksum begin, and where the octal size ends.
_CHECKSUM = 148
_SIZE_END = 135
_LABEL_DIGITS = 19
_POWERS_OF_TEN = 10 ** np.arange(1, _LABEL_DIGITS, dtype=np.int64)
_FEW = 10_000


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
        start = self.offset + BLOCK + len(self.prefix)
        return slice(start, start + self.num_bytes)

    @property
    def stop(self) -> int:
        """Where the next member starts."""
        blocks = max(1, -(-self.size // BLOCK))
        return self.offset + BLOCK + blocks * BLOCK


@dataclass(frozen=True)
class Layout:
    """The members of every sample of a data set, in the order in which they lie in the tar."""

    label: Member
    noise: Member
    tokens: Member

    @property
    def stride(self) -> int:
        """Bytes of one sample, headers and padding included, but for its caption."""
        return self.tokens.stop

    def num_bytes(self, num_pairs: int) -> int:
        """Bytes of a whole shard without captions."""
        return archive_size(num_pairs * self.stride)


def archive_size(num_sample_bytes: int) -> int:
    """Bytes of a tar whose samples take so many: it ends with two empty blocks and fills its last record."""
    return -(-(num_sample_bytes + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


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


def bytes_per_pair(spec: PairSpec) -> int:
    """Bytes that one pair takes in a shard, with the tar's headers and padding; its caption one block of 512."""
    return layout_of(spec).stride + (0 if spec.captions is None else 2 * BLOCK)


def read_labels(layout: Layout, rows: Array) -> Array:
    """Labels (B,) int64 out of the samples' bytes (B, stride).

    Raises:
        ValueError: a label that is not a number.
    """
    start = layout.label.offset + BLOCK
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
    frame = _frame_of(layout)
    expected = np.tile(frame.template[frame.varying], (len(rows), 1))
    keys = _digits(index_B, 10, KEY_DIGITS)
    labels = _decimal(label_B)
    label_sizes = 1 + np.searchsorted(_POWERS_OF_TEN, label_B, side="right")
    in_keys = keys.sum(axis=1, dtype=np.int64) - KEY_DIGITS * ord("0")
    in_sizes = {layout.label: label_sizes // 8 + label_sizes % 8}
    for member in (layout.label, layout.noise, layout.tokens):
        expected[:, frame.places(member.offset, KEY_DIGITS)] = keys
        # A tar checksum is the sum of the header's bytes, here those of key 0 and what the digits add.
        checksums = frame.checksum(member) + in_keys + in_sizes.get(member, 0)
        expected[:, frame.places(member.offset + _CHECKSUM, 6)] = _digits(checksums, 8, 6)
    size_digits = np.stack([label_sizes // 8, label_sizes % 8], axis=1) + ord("0")
    expected[:, frame.places(layout.label.offset + _SIZE_END - 2, 2)] = size_digits
    expected[:, frame.places(layout.label.offset + BLOCK, _LABEL_DIGITS)] = labels
    # All is compared eight bytes at a time; where such a word reaches into a payload, that part is left out.
    words, template = rows.view(np.uint64), frame.template.view(np.uint64)
    found = np.take(words, frame.varying[::8] // 8, axis=1) & frame.framing
    wrong = (found != expected.view(np.uint64)).any(axis=1)
    for run, varying in frame.runs:
        unlike = words[:, run] != template[run]
        unlike[:, varying] = False
        if unlike.any():
            wrong |= unlike.any(axis=1)
    return np.flatnonzero(wrong)


def holds_member(layout: Layout, member: Member, rows: Array, index_B: Array) -> Array:
    """Which samples (B,) hold a member, noise or tokens, where it belongs: its header and prefix are whole.

    Args:
        layout: the data set's layout.
        member: one of its members, but for the label, whose size varies.
        rows: (B, stride) uint8, the samples' bytes.
        index_B: the pair_index that each sample should carry.
    """
    frame, columns = _frame_of(layout), slice(member.offset, member.data.start)
    expected = np.tile(frame.template[columns], (len(rows), 1))
    keys = _digits(index_B, 10, KEY_DIGITS)
    checksums = frame.checksum(member) + keys.sum(axis=1, dtype=np.int64) - KEY_DIGITS * ord("0")
    expected[:, :KEY_DIGITS] = keys
    expected[:, _CHECKSUM : _CHECKSUM + 6] = _digits(checksums, 8, 6)
    return (rows[:, columns] == expected).all(axis=1)


@dataclass(frozen=True)
class _Frame:
    """What stands around the payloads of every sample.

    Attributes:
        template: (stride,) uint8, the sample of key 0 with a label of no digits and payloads of zero bytes.
        runs: of eight-byte words that are not payload alone, and which of each run's words vary.
        varying: the columns of the remaining words, ascending, without those of payloads alone.
        framing: these words with ones where they are not payload, uint64.
    """

    template: Array
    runs: tuple[tuple[slice, Array], ...]
    varying: Array
    framing: Array

    def places(self, column: int, count: int) -> slice:
        """Where neighbouring columns lie among the varying ones."""
        start = int(np.searchsorted(self.varying, column))
        return slice(start, start + count)

    def checksum(self, member: Member) -> int:
        """The checksum in the template's header of a member."""
        start = member.offset + _CHECKSUM
        return int(self.template[start : start + 6].tobytes(), 8)


@lru_cache(maxsize=8)
def _frame_of(layout: Layout) -> _Frame:
    template = np.zeros(layout.stride, dtype=np.uint8)
    constant, payload = np.ones(layout.stride, dtype=bool), np.zeros(layout.stride, dtype=bool)
    for member in (layout.label, layout.noise, layout.tokens):
        content = tar_header(f"{'0' * KEY_DIGITS}.{member.extension}", member.size) + member.prefix
        template[member.offset : member.offset + len(content)] = np.frombuffer(content, dtype=np.uint8)
        constant[member.offset : member.offset + KEY_DIGITS] = False
        constant[member.offset + _CHECKSUM : member.offset + _CHECKSUM + 6] = False
        payload[member.data] = True
    constant[layout.label.offset + _SIZE_END - 2 : layout.label.offset + _SIZE_END] = False
    constant[layout.label.offset + BLOCK : layout.label.offset + BLOCK + _LABEL_DIGITS] = False
    common, framed = _whole_words(constant & ~payload), ~_whole_words(payload)
    edges = np.flatnonzero(np.diff(framed, prepend=False, append=False)).tolist()
    runs = tuple(
        (slice(start, stop), np.flatnonzero(~common[start:stop]))
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
    )
    varying = np.flatnonzero(np.repeat(framed & ~common, 8))
    framing = np.where(payload, 0, 0xFF).astype(np.uint8)[varying].view(np.uint64)
    return _Frame(template, runs, varying, framing)


def _whole_words(columns: Array) -> Array:
    """Which words of eight bytes a mask of bytes covers."""
    return np.logical_and.reduce(columns.reshape(-1, 8), axis=1)


def tar_header(name: str, num_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = num_bytes, TAR_MODE, 0
    info.uname = info.gname = TAR_OWNER
    return info.tobuf(tarfile.USTAR_FORMAT)


def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _digits(numbers: Array, base: int, count: int) -> Array:
    """The last `count` ASCII digits (B, count) of whole numbers in a base, zeros before them."""
    digits = np.empty((len(numbers), count), dtype=np.uint8)
    for place in reversed(range(count)):
        # Division by one number is several times as fast as by an array of powers.
        rest = numbers // base
        digits[:, place] = numbers - rest * base + ord("0")
        numbers = rest
    return digits


def _decimal(numbers: Array) -> Array:
    """ASCII digits (B, 19) uint8 of whole numbers, left-aligned, zero bytes after them."""
    if len(numbers) and numbers.min() >= 0 and numbers.max() < _FEW:
        return _few_decimals()[numbers]
    return numbers.astype(f"S{_LABEL_DIGITS}").view(np.uint8).reshape(len(numbers), _LABEL_DIGITS)


@lru_cache(maxsize=1)
def _few_decimals() -> Array:
    """`_decimal` of the numbers below `_FEW`: looking labels up is faster than writing them."""
    return np.arange(_FEW).astype(f"S{_LABEL_DIGITS}").view(np.uint8).reshape(_FEW, _LABEL_DIGITS)
