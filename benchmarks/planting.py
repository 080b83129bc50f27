"""Small pair data sets for planting damage: the sound one, others as sources of wrong files, and copies to damage."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shards import Manifest, Pairs, PairSpec, commit_shard, create_dataset, gaussian_noise, label
from shards.dataset.manifest_row import (
    JOINED_FILE,
    ManifestRow,
    read_row,
    replace_row,
    shard_name,
    shard_path,
)
from shards.format.spec import Array
from shards.format.tar_layout import Layout, Member, layout_of
from shards.storage.files import sha256_bytes, xxh3_bytes

NUM_SHARDS = 6
ROW_EXTRAS = {"seconds": 1.5, "host": "here", "device": "cpu", "batch_size": 4, "versions": "numpy 2"}


@dataclass(frozen=True)
class Originals:
    """Sound data sets, each in a folder: the one to damage, and others as sources of wrong files.

    Attributes:
        sound: the one to damage, with a joined table.
        older: the same fingerprint and pairs, except for some tokens, as another device may make them.
        other_seed: made with another seed.
        other_teacher: made by another teacher.
    """

    sound: Path
    older: Path
    other_seed: Path
    other_teacher: Path


@dataclass(frozen=True)
class Copy:
    """A copy of the sound data set to damage, the originals, and a random generator."""

    root: Path
    originals: Originals
    choice: random.Random

    @property
    def spec(self) -> PairSpec:
        return Manifest.open(self.originals.sound).spec

    def shard(self) -> str:
        """A random shard that training reads."""
        return shard_name(self.choice.randrange(1, NUM_SHARDS))

    def two_shards(self) -> tuple[str, str]:
        one, other = self.choice.sample(range(1, NUM_SHARDS), 2)
        return shard_name(one), shard_name(other)

    def joined(self) -> Path:
        """The joined table, restored if it is missing."""
        path = self.root / JOINED_FILE
        shutil.copyfile(self.originals.sound / JOINED_FILE, path)
        return path

    def row(self, name: str) -> ManifestRow:
        row = read_row(self.root, name)
        if row is None:
            raise ValueError(f"{name} has no row")
        return row

    def member(self) -> Member:
        """Noise or tokens of a sample."""
        layout = layout_of(self.spec)
        return self.choice.choice((layout.noise, layout.tokens))

    def sample_offset(self) -> int:
        """The offset of a random sample of a shard."""
        return self.choice.randrange(self.spec.pairs_per_shard) * layout_of(self.spec).stride

    def inside(self, member: Member) -> int:
        """A random offset inside a member's content."""
        return self.choice.randrange(member.data.start + 1, member.data.stop)

    @property
    def num_sample_bytes(self) -> int:
        """The offset of a tar's trailer."""
        return self.spec.pairs_per_shard * layout_of(self.spec).stride

    def reseal(self, name: str, change: Callable[[Layout, Array], None]) -> set[str]:
        """Change a shard's samples (one row each) and recompute the hashes in its row."""
        path, layout, size = shard_path(self.root, name), layout_of(self.spec), self.spec.pairs_per_shard
        everything = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
        change(layout, everything[: size * layout.stride].reshape(size, layout.stride))
        path.write_bytes(everything.tobytes())
        joined = (self.root / JOINED_FILE).is_file()
        data = everything.tobytes()
        replace_row(self.root, replace(self.row(name), sha256=sha256_bytes(data), xxh3_128=xxh3_bytes(data)))
        if joined:
            Manifest.open(self.root).write_joined()
        return {path.name}


def make_originals(folder: Path, noise: str) -> Originals:
    """Make the sound data set and the others below a folder."""
    spec = PairSpec(
        lineage={"teacher": {"name": "small", "top_k": 5}, "dtype": "float32"},
        tokens_per_step=(1, 2, 3),
        vocab_size=64,
        codebook_dim=3,
        num_classes=5,
        num_heldout=8,
        pairs_per_shard=8,
        seed=7,
        noise=noise,
    )
    specs = {
        "sound": spec,
        "older": spec,
        "other_seed": replace(spec, seed=8),
        "other_teacher": replace(spec, lineage={"teacher": {"name": "small", "top_k": 6}, "dtype": "float32"}),
    }
    shifts = {"older": 1, "other_teacher": 2}
    for name, of_it in specs.items():
        create_dataset(folder / name, of_it)
        for index in range(NUM_SHARDS):
            commit_shard(folder / name, of_it, index, _pairs(of_it, index, shifts.get(name, 0)), ROW_EXTRAS)
        Manifest.open(folder / name).write_joined()
    return Originals(**{name: folder / name for name in specs})


def _pairs(spec: PairSpec, shard: int, shift: int) -> Pairs:
    count = spec.pairs_per_shard
    index_B = np.arange(shard * count, (shard + 1) * count, dtype=np.int64)
    tokens_BL = (31 * index_B[:, None] + 7 * np.arange(spec.num_tokens) + shift) % spec.vocab_size
    return Pairs(
        index_B=index_B,
        noise_BLC=gaussian_noise(spec.seed, int(index_B[0]), count, spec.noise_shape),
        tokens_BL=tokens_BL.astype(spec.token_dtype),
        label_B=label(index_B, spec.num_classes),
    )
