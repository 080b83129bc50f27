"""Pairs in columns, and the encoding of one pair as a WebDataset sample."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from shards.core.errors import Failed
from shards.format.spec import Array, PairSpec

KEY_DIGITS = 9
PairIndex = TypeVar("PairIndex", int, Array)


def label(pair_index: PairIndex, num_classes: int) -> PairIndex:
    """Class label of a pair or of an array of pairs: `num_classes` consecutive pairs contain each class once."""
    return pair_index % num_classes


@dataclass(frozen=True)
class Pairs:
    """A batch of pairs in columns."""

    index_B: Array  #: pair_index, int64
    noise_BLC: Array  #: float16
    tokens_BL: Array  #: the spec's token_dtype
    label_B: Array  #: int64
    text_B: Array | None = None  #: captions, str as objects; None if labels are classes or captions were not read

    def __len__(self) -> int:
        return len(self.index_B)

    def take(self, indices: Array | slice) -> Pairs:
        """The pairs at these positions of the batch (indices, a mask or a slice)."""
        return Pairs(**{name: column[indices] for name, column in self._columns().items()})

    @classmethod
    def concatenate(cls, batches: Sequence[Pairs]) -> Pairs:
        """Concatenate batches in their order."""
        columns = [batch._columns() for batch in batches]
        return cls(**{name: np.concatenate([batch[name] for batch in columns]) for name in columns[0]})

    def _columns(self) -> dict[str, Array]:
        """The columns that are not None, by name."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}


def check_pairs(spec: PairSpec, pairs: Pairs) -> None:
    """Raise `Failed`, naming the first column of another shape, dtype or range than the spec's."""
    count = len(pairs)
    expected = {
        "index_B": ((count,), np.dtype(np.int64)),
        "noise_BLC": ((count, *spec.noise_shape), np.dtype(np.float16)),
        "tokens_BL": ((count, spec.num_tokens), spec.token_dtype),
        "label_B": ((count,), np.dtype(np.int64)),
    }
    for name, (shape, dtype) in expected.items():
        column = getattr(pairs, name)
        if column.shape != shape or column.dtype != dtype:
            raise Failed(f"{name} is {column.dtype} {column.shape}: the data set contains {dtype} {shape}")
    if (pairs.text_B is None) != (spec.captions is None):
        raise Failed(
            f"text_B is {'missing' if pairs.text_B is None else 'present'}: the data set contains "
            f"{'classes' if spec.captions is None else 'captions'}"
        )
    if not np.isfinite(pairs.noise_BLC).all():
        raise Failed("noise_BLC contains numbers that are not finite")
    for name, limit in (("index_B", 10**KEY_DIGITS), ("tokens_BL", spec.vocab_size), ("label_B", spec.num_classes)):
        column = getattr(pairs, name)
        if count and (column.min() < 0 or column.max() >= limit):
            raise Failed(f"{name} ranges over {column.min()} .. {column.max()}: it must be in 0 .. {limit - 1}")


def checksum(noise_LC: Array) -> int:
    """CRC-32 of one pair's float16 noise in little-endian bytes."""
    return zlib.crc32(noise_LC.astype("<f2", copy=False).tobytes())


def encode_pair(
    spec: PairSpec, pair_index: int, noise_LC: Array, tokens_L: Array, pair_label: int, text: str | None = None
) -> dict[str, str | bytes]:
    """Encode one pair as a WebDataset sample: `__key__`, and the bytes of each member by extension.

    These are "cls" (ASCII), "tokens.npy", "noise.npy" or, with noise "counter", "crc" (uint32, little-endian), and
    "txt" (UTF-8) if the data set has captions.
    """
    sample: dict[str, str | bytes] = {
        "__key__": f"{pair_index:0{KEY_DIGITS}d}",
        "cls": str(pair_label).encode("ascii"),
        "tokens.npy": _npy(tokens_L),
    }
    if spec.noise == "counter":
        sample["crc"] = checksum(noise_LC).to_bytes(4, "little")
    else:
        sample["noise.npy"] = _npy(noise_LC)
    if text is not None:
        sample["txt"] = text.encode()
    return sample


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, little_endian, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
