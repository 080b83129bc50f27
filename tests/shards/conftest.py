"""Small data sets: 8 pairs per shard, 6 tokens of 3 numbers, 12 classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import Manifest, Pairs, PairSpec, commit_shard, create_dataset, gaussian_noise, label

ROW_EXTRAS = {"seconds": 1.5, "host": "here", "device": "cpu", "batch_size": 4, "versions": "numpy 2"}


@pytest.fixture
def row_extras() -> dict[str, Any]:
    return dict(ROW_EXTRAS)


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., PairSpec]:
    def make(**changes: Any) -> PairSpec:
        settings: dict[str, Any] = {
            "lineage": {"teacher": {"name": "small", "top_k": 5}, "dtype": "float32"},
            "tokens_per_step": (1, 2, 3),
            "vocab_size": 64,
            "codebook_dim": 3,
            "num_classes": 12,
            "num_heldout": 8,
            "pairs_per_shard": 8,
            "seed": 7,
            "noise": "stored",
        }
        return PairSpec(**(settings | changes))

    return make


@pytest.fixture(scope="session")
def make_pairs() -> Callable[[PairSpec, int], Pairs]:
    def make(spec: PairSpec, shard_index: int) -> Pairs:
        count = spec.pairs_per_shard
        first = shard_index * count
        index_B = np.arange(first, first + count, dtype=np.int64)
        # Token sequences that do not depend on a random generator, whose stream may change.
        tokens_BL = (31 * index_B[:, None] + 7 * np.arange(spec.num_tokens)) % spec.vocab_size
        return Pairs(
            index_B=index_B,
            noise_BLC=gaussian_noise(spec.seed, first, count, spec.noise_shape),
            tokens_BL=tokens_BL.astype(spec.token_dtype),
            label_B=label(index_B, spec.num_classes),
        )

    return make


@pytest.fixture
def make_dataset(tmp_path: Path, make_pairs: Callable[[PairSpec, int], Pairs]) -> Callable[..., Manifest]:
    def make(spec: PairSpec, num_shards: int, pairs_of: Callable[[PairSpec, int], Pairs] = make_pairs) -> Manifest:
        root = tmp_path / "pairs"
        create_dataset(root, spec)
        for index in range(num_shards):
            commit_shard(root, spec, index, pairs_of(spec, index), ROW_EXTRAS)
        return Manifest.open(root)

    return make


@pytest.fixture
def columns_equal() -> Callable[[Pairs, Pairs], bool]:
    def equal(one: Pairs, other: Pairs) -> bool:
        return all(
            getattr(one, name).dtype == getattr(other, name).dtype
            and getattr(one, name).tobytes() == getattr(other, name).tobytes()
            and getattr(one, name).shape == getattr(other, name).shape
            for name in ("index_B", "noise_BLC", "tokens_BL", "label_B")
        )

    return equal
