"""What a pair is: the PairSpec of a data set, pairs by columns, and one pair as a WebDataset sample."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from shards.errors import Failed, Refused

SCHEMA_VERSION = 1
NOISE_MODES = ("stored", "counter")
KEY_DIGITS = 9

Array = npt.NDArray[Any]
PairIndex = TypeVar("PairIndex", int, Array)


def label(pair_index: PairIndex, num_classes: int) -> PairIndex:
    """Class label of a pair (or of an array of them): any `num_classes` neighbours hold each class once."""
    return pair_index % num_classes


def without_names(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """A lineage without its keys `name`, at any depth: all of it that determines a pair."""
    return {
        key: without_names(value) if isinstance(value, Mapping) else value
        for key, value in lineage.items()
        if key != "name"
    }


@dataclass(frozen=True)
class PairSpec:
    """Everything that the pairs of one data set have in common.

    Attributes:
        lineage: JSON-able record of all that determines a pair besides its index and the fields below
            (weights, settings, flow map, dtype). What it holds under a key `name` is for people: it determines
            nothing.
        tokens_per_step: tokens that each AR step makes; their sum is L.
        vocab_size: V, rows of the codebook.
        codebook_dim: C, numbers in a row.
        num_classes: labels run over 0 .. num_classes - 1.
        num_heldout: H, the first pairs, which no training ever sees.
        pairs_per_shard: pairs in every shard.
        seed: seed of the noise, 0 <= seed < 2**64.
        noise: "stored" in every sample, or regenerated from its "counter" and held against a checksum.
        captions: of a data set whose labels are numbers of captions, what determines their list: at least its
            `sha256`, see `shards.captions`. None where labels are classes.
    """

    lineage: dict[str, Any]
    tokens_per_step: tuple[int, ...]
    vocab_size: int
    codebook_dim: int
    num_classes: int
    num_heldout: int
    pairs_per_shard: int
    seed: int
    noise: str
    captions: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.tokens_per_step:
            raise Refused("tokens_per_step is empty: a pair needs at least one AR step")
        sizes = {
            "tokens_per_step": min(self.tokens_per_step),
            "vocab_size": self.vocab_size,
            "codebook_dim": self.codebook_dim,
            "num_classes": self.num_classes,
            "pairs_per_shard": self.pairs_per_shard,
        }
        for name, value in sizes.items():
            if value < 1:
                raise Refused(f"{name} holds {value}: it must be at least 1")
        if self.num_heldout < 0:
            raise Refused(f"num_heldout is {self.num_heldout}: it must be 0 or more")
        if not 0 <= self.seed < 2**64:
            raise Refused(f"seed is {self.seed}: it must lie in 0 .. 2**64 - 1")
        if self.noise not in NOISE_MODES:
            raise Refused(f"noise is {self.noise!r}: it must be one of {', '.join(NOISE_MODES)}")
        if self.captions is not None and not re.fullmatch("[0-9a-f]{64}", str(self.captions.get("sha256"))):
            raise Refused("captions holds no sha256 of 64 hexadecimal digits")

    @property
    def num_tokens(self) -> int:
        """L, tokens of one sequence."""
        return sum(self.tokens_per_step)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(L, C), the shape of one pair's noise."""
        return self.num_tokens, self.codebook_dim

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """uint16 where the codebook's indices fit, else int32."""
        return np.dtype(np.uint16 if self.vocab_size <= 65536 else np.int32)

    @property
    def bytes_per_pair(self) -> int:
        """Bytes that one pair takes in a shard, with the tar's headers and padding; its caption one block of 512."""
        no_noise_LC = np.zeros(self.noise_shape, dtype=np.float16)
        no_tokens_L = np.zeros(self.num_tokens, dtype=self.token_dtype)
        sample = encode_pair(
            self, 0, no_noise_LC, no_tokens_L, 0, None if self.captions is None else "a caption"
        )
        sizes = [len(content) for name, content in sample.items() if name != "__key__"]
        return sum(tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE)) for size in sizes)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that determines a pair; data sets of different fingerprints never mix.

        How pairs are kept (num_heldout, pairs_per_shard, noise) is not part of it, nor is any name in the
        lineage: the same weights under another name make the same pairs.
        """
        content = {
            "schema_version": SCHEMA_VERSION,
            "lineage": without_names(self.lineage),
            "seed": self.seed,
            "tokens_per_step": self.tokens_per_step,
            "V": self.vocab_size,
            "C": self.codebook_dim,
            "num_classes": self.num_classes,
        }
        if self.captions is not None:
            content["captions"] = without_names(self.captions)
        return _sha256_json(content)

    def to_json(self) -> dict[str, Any]:
        """The content of dataset.json; `sha256` is of all the rest, and so of what no fingerprint covers."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "lineage": self.lineage,
            "tokens_per_step": list(self.tokens_per_step),
            "V": self.vocab_size,
            "C": self.codebook_dim,
            "num_classes": self.num_classes,
            "num_heldout": self.num_heldout,
            "pairs_per_shard": self.pairs_per_shard,
            "seed": self.seed,
            "noise": self.noise,
        }
        if self.captions is not None:
            content["captions"] = self.captions
        return content | {"sha256": _sha256_json(content)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PairSpec:
        """The spec that `to_json` wrote.

        Raises:
            Refused: another schema version, a missing, unknown or malformed key, or a hash of another content.
        """
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise Refused(f"schema_version is {version!r}: this version of onestep reads {SCHEMA_VERSION}")
        try:
            spec = cls(
                lineage=dict(content["lineage"]),
                tokens_per_step=tuple(int(count) for count in content["tokens_per_step"]),
                vocab_size=int(content["V"]),
                codebook_dim=int(content["C"]),
                num_classes=int(content["num_classes"]),
                num_heldout=int(content["num_heldout"]),
                pairs_per_shard=int(content["pairs_per_shard"]),
                seed=int(content["seed"]),
                noise=str(content["noise"]),
                captions=None if content.get("captions") is None else dict(content["captions"]),
            )
            recorded = content["fingerprint"]
        except KeyError as error:
            raise Refused(f"the key {error.args[0]!r} is missing") from error
        except (TypeError, ValueError) as error:
            raise Refused(f"a key holds a value of the wrong kind: {error}") from error
        if recorded != spec.fingerprint:
            raise Refused(
                f"fingerprint is {recorded}, but that of the content is {spec.fingerprint}: it was edited; "
                "put back what was changed"
            )
        if unknown := content.keys() - spec.to_json().keys():
            raise Refused(f"the key {min(unknown)!r} is none that this version of onestep knows")
        # Data sets founded before there was this key have none.
        rest = {key: value for key, value in content.items() if key != "sha256"}
        if content.get("sha256", digest := _sha256_json(rest)) != digest:
            raise Refused(
                f"sha256 is {content['sha256']}, but that of the rest is {digest}: it was edited; "
                "put back what was changed"
            )
        return spec


@dataclass(frozen=True)
class Pairs:
    """A batch of pairs by columns.

    Attributes:
        index_B: pair_index, int64.
        noise_BLC: float16.
        tokens_BL: the spec's token_dtype.
        label_B: int64.
        text_B: captions, str as objects; None where there are none, or nobody read them.
    """

    index_B: Array
    noise_BLC: Array
    tokens_BL: Array
    label_B: Array
    text_B: Array | None = None

    def __len__(self) -> int:
        return len(self.index_B)

    def take(self, indices: Array | slice) -> Pairs:
        """The pairs at these places of the batch (positions, a mask or a slice)."""
        return Pairs(**{name: column[indices] for name, column in self._columns().items()})

    @classmethod
    def concatenate(cls, batches: Sequence[Pairs]) -> Pairs:
        """One batch out of several, in their order."""
        columns = [batch._columns() for batch in batches]
        return cls(**{name: np.concatenate([each[name] for each in columns]) for name in columns[0]})

    def _columns(self) -> dict[str, Array]:
        """Those that are there, by name."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}


def check_pairs(spec: PairSpec, pairs: Pairs) -> None:
    """Holds a batch against its spec before anything is written.

    Raises:
        Failed: naming the first column whose shape, dtype or range is not the spec's.
    """
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
            raise Failed(f"{name} is {column.dtype} {column.shape}: the data set holds {dtype} {shape}")
    if (pairs.text_B is None) != (spec.captions is None):
        raise Failed(
            f"text_B is {'missing' if pairs.text_B is None else 'there'}: the data set holds "
            f"{'classes' if spec.captions is None else 'captions'}"
        )
    if not np.isfinite(pairs.noise_BLC).all():
        raise Failed("noise_BLC holds numbers that are not finite")
    for name, limit in (
        ("index_B", 10**KEY_DIGITS),
        ("tokens_BL", spec.vocab_size),
        ("label_B", spec.num_classes),
    ):
        column = getattr(pairs, name)
        if count and (column.min() < 0 or column.max() >= limit):
            raise Failed(
                f"{name} runs over {column.min()} .. {column.max()}: it must lie in 0 .. {limit - 1}"
            )


def _sha256_json(content: Mapping[str, Any]) -> str:
    """sha256 (hex) of JSON in its canonical form: keys sorted, no blanks, ASCII."""
    try:
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Refused(f"lineage cannot be written as JSON: {error}") from error
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def checksum(noise_LC: Array) -> int:
    """CRC-32 of the bytes of one pair's float16 noise."""
    return zlib.crc32(noise_LC.astype("<f2", copy=False).tobytes())


def encode_pair(
    spec: PairSpec,
    pair_index: int,
    noise_LC: Array,
    tokens_L: Array,
    pair_label: int,
    text: str | None = None,
) -> dict[str, str | bytes]:
    """One pair as a WebDataset sample.

    Returns:
        `__key__` and the bytes of each member by extension: "cls" (ASCII), "tokens.npy", and "noise.npy" or,
        where noise comes from its counter, "crc" (uint32, little-endian); "txt" (UTF-8) where there are captions.
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
