"""The order in which training reads the pairs: pure functions of (shard sizes, seed, epoch).

Shards are permuted, and samples are shuffled within windows of a few consecutive shards, so that a reader keeps few
shards open. Epochs follow each other without a gap and no sample is dropped: the sequence is endless, and every batch
size and world size cuts the same sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from shards.format.spec import Array

# Separates the words drawn here from those of noise under the same seed ("ORDER" in ASCII).
_KEY = 0x4F52444552


@dataclass(frozen=True)
class Order:
    """The endless sequence over a view. Changing it for any (sizes, seed, window) breaks: ORDER."""

    sizes: tuple[int, ...]  #: samples that each shard contributes, in the order of the manifest
    seed: int
    window: int = 16  #: shards whose samples are shuffled together

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError("an order needs at least one shard, and at least one sample in each")
        if self.window < 1:
            raise ValueError(f"window is {self.window}: it must be at least 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}: it must be in 0 .. 2**64 - 1")

    @cached_property
    def epoch_size(self) -> int:
        """Samples in one epoch."""
        return sum(self.sizes)

    def indices(self, start: int, stop: int) -> Array:
        """Samples at positions `start` .. `stop - 1`, as int64 places in the view (0 .. epoch_size - 1).

        The cost is that of the windows touched, independent of `start`.
        """
        pieces = list(self.pieces(start, stop))
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def pieces(self, start: int, stop: int) -> Iterator[Array]:
        """The result of `indices`, cut at the boundaries of windows."""
        while start < stop:
            epoch, offset = divmod(start, self.epoch_size)
            _, bounds = _windows(self, epoch)
            number = int(np.searchsorted(bounds, offset, side="right")) - 1
            within = offset - int(bounds[number])
            piece = _window_samples(self, epoch, number)[within : within + stop - start]
            yield piece
            start += len(piece)


def rank_slice(batch: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Positions (start, stop) of a rank's part of a global batch: the rank-th of `world_size` equal runs."""
    if batch_size % world_size or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} has no equal part of a batch of {batch_size}")
    size = batch_size // world_size
    start = batch * batch_size + rank * size
    return start, start + size


# Cached, because consecutive batches read the same window; both functions are pure.
@lru_cache(maxsize=4)
def _windows(order: Order, epoch: int) -> tuple[Array, Array]:
    """The permuted shards of an epoch, and the offsets of its windows, with the end of the last one."""
    shards = _permutation(order.seed, epoch, 0, len(order.sizes))
    ends = np.cumsum(np.asarray(order.sizes, dtype=np.int64)[shards])
    closing = np.append(ends[order.window - 1 : -1 : order.window], ends[-1])
    return shards, np.concatenate([[0], closing])


@lru_cache(maxsize=4)
def _window_samples(order: Order, epoch: int, number: int) -> Array:
    """All samples of one window of an epoch, shuffled."""
    shards, _ = _windows(order, epoch)
    firsts = np.concatenate([[0], np.cumsum(np.asarray(order.sizes, dtype=np.int64))])
    members = shards[number * order.window : (number + 1) * order.window]
    samples = np.concatenate([np.arange(firsts[shard], firsts[shard + 1]) for shard in members])
    return samples[_permutation(order.seed, epoch, number + 1, len(samples))]


def _permutation(seed: int, epoch: int, number: int, size: int) -> Array:
    """A permutation: the stable order of raw Philox words drawn for (seed, epoch, number) alone."""
    key = np.array([seed, _KEY], dtype=np.uint64)
    counter = np.array([0, number, epoch, 0], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(size)
    return np.argsort(words, kind="stable")
