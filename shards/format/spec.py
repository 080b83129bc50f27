"""The PairSpec: everything that the pairs of one data set have in common, with its JSON form and fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.core.errors import Refused

SCHEMA_VERSION = 1
NOISE_MODES = ("stored", "counter")

Array = npt.NDArray[Any]


def without_names(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without the keys `name`, at any depth: names do not determine a pair."""
    return {
        key: without_names(value) if isinstance(value, Mapping) else value
        for key, value in lineage.items()
        if key != "name"
    }


@dataclass(frozen=True)
class PairSpec:
    """Everything that the pairs of one data set have in common.

    The lineage is a JSON-serialisable record of all that determines a pair, except its index and the other fields
    (weights, settings, flow map, dtype). Values of keys `name` are for readers and determine nothing. If labels are
    indices into a list of captions, `captions` contains what determines the list: at least its `sha256`, see
    `shards.dataset.captions`.
    """

    lineage: dict[str, Any]
    tokens_per_step: tuple[int, ...]  #: tokens that each AR step generates; their sum is L
    vocab_size: int  #: V, rows of the codebook
    codebook_dim: int  #: C, numbers in a row
    num_classes: int  #: labels are 0 .. num_classes - 1
    num_heldout: int  #: number of pairs at the start that training never uses
    pairs_per_shard: int
    seed: int  #: of the noise
    noise: str  #: "stored" in every sample, or regenerated from its "counter" and compared with a checksum
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
                raise Refused(f"{name} contains {value}: it must be at least 1")
        if self.num_heldout < 0:
            raise Refused(f"num_heldout is {self.num_heldout}: it must be 0 or more")
        if not 0 <= self.seed < 2**64:
            raise Refused(f"seed is {self.seed}: it must be in 0 .. 2**64 - 1")
        if self.noise not in NOISE_MODES:
            raise Refused(f"noise is {self.noise!r}: it must be one of {', '.join(NOISE_MODES)}")
        if self.captions is not None and not re.fullmatch("[0-9a-f]{64}", str(self.captions.get("sha256"))):
            raise Refused("captions.sha256 is missing or not 64 hexadecimal digits")

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
        """uint16 if the codebook's indices fit, otherwise int32."""
        return np.dtype(np.uint16 if self.vocab_size <= 65536 else np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that determines a pair; data sets with different fingerprints are never mixed.

        It excludes how pairs are stored (num_heldout, pairs_per_shard, noise) and the names in the lineage: the same
        weights under another name give the same pairs.
        """
        storage = {"num_heldout", "pairs_per_shard", "noise"}
        content = {key: value for key, value in self._fields().items() if key not in storage}
        return _sha256_json(without_names({"schema_version": SCHEMA_VERSION} | content))

    def to_json(self) -> dict[str, Any]:
        """The content of dataset.json. Its `sha256` covers all other keys, also those outside the fingerprint."""
        content = {"schema_version": SCHEMA_VERSION, "fingerprint": self.fingerprint, **self._fields()}
        return content | {"sha256": _sha256_json(content)}

    def _fields(self) -> dict[str, Any]:
        """The fields by their keys in dataset.json."""
        content = {
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
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PairSpec:
        """Parse the content that `to_json` returns. Raises `Refused` for any other."""
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise Refused(f"schema_version is {version!r}: this version of tokenleap reads {SCHEMA_VERSION}")
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
            raise Refused(f"a key has a value of the wrong type: {error}") from error
        if recorded != spec.fingerprint:
            raise _edited("fingerprint", recorded, spec.fingerprint)
        if unknown := content.keys() - spec.to_json().keys():
            raise Refused(f"the key {min(unknown)!r} is unknown to this version of tokenleap")
        # Older data sets do not have this key.
        rest = {key: value for key, value in content.items() if key != "sha256"}
        if content.get("sha256", digest := _sha256_json(rest)) != digest:
            raise _edited("sha256", content["sha256"], digest)
        return spec


def _edited(key: str, recorded: object, actual: str) -> Refused:
    return Refused(
        f"{key} is {recorded}, but the content has {actual}: the file was edited; restore the original content"
    )


def _sha256_json(content: Mapping[str, Any]) -> str:
    """sha256 (hex) of canonical JSON: sorted keys, no spaces, ASCII."""
    try:
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Refused(f"lineage cannot be written as JSON: {error}") from error
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
