"""PairStream: endless batches of pairs for training, exact in order and in resuming."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from shards.core.errors import Refused, join_first
from shards.core.host import home_folder
from shards.core.mismatch import format_mismatch, mismatches
from shards.dataset.manifest import View
from shards.format.spec import Array
from shards.storage.paths import Location, location
from shards.streaming.batches import PairBatch, PairBatches
from shards.streaming.download_cache import DEFAULT_BYTES, ShardCache
from shards.streaming.order import Order
from shards.streaming.prefetch import PrefetchedBatches
from shards.streaming.shard_source import ShardSource

STATE_VERSION = 1


class PairStream(Iterator[PairBatch]):
    """One rank's part of the endless sequence of global batches.

    The sequence depends on (view, seed, window) alone. The only state is `position`, the number of pairs that all ranks
    together have consumed: a stream resumes under any world size that divides the batch.
    """

    def __init__(
        self,
        root: Location | str,
        view: View,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        window: int = 16,
        *,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        cache_dir: Path | None = None,
        cache_bytes: int = DEFAULT_BYTES,
    ) -> None:
        """A stream at position 0.

        Args:
            batch_size: of the global batch, all ranks together.
            window: shards whose samples are shuffled together.
            num_workers: processes that read ahead, 0 for none; the batches are the same.
            prefetch: batches that each worker makes in advance.
            pin_memory: return batches in pinned memory, from which a GPU copies asynchronously.
            cache_dir: folder that stores shards of a remote root, by default
                `${TOKENLEAP_HOME:-~/.cache/tokenleap}/shards`; all processes of this host share it.
            cache_bytes: most bytes that the cache may hold.

        Raises:
            Refused: an empty view, a batch that cannot be cut into equal parts, a cache too small for the window,
                pinned memory without a GPU.
        """
        _refuse_impossible(batch_size, rank, world_size, num_workers, prefetch, pin_memory)
        try:
            order = Order(view.sizes, seed, window)
        except ValueError as error:
            raise Refused(f"cannot stream {view.size} pairs of {root}: {error}") from error
        self.root = location(root)
        self.view = view
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.position = 0
        self._order = order
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._pin_memory = pin_memory
        cache = None if isinstance(self.root, Path) else _cache(cache_dir, cache_bytes, view, window)
        self._batches = PairBatches(ShardSource(self.root, cache), view, order, batch_size, rank, world_size)
        self._prefetched: PrefetchedBatches | None = None

    def __next__(self) -> PairBatch:
        try:
            batch = self._batch(self.position // self.batch_size)
        except BaseException:
            # Batches that workers made beyond the failed one are dropped: the next call starts the workers again.
            self.close()
            raise
        # Only a complete batch counts as consumed.
        self.position += self.batch_size
        return batch

    def upcoming(self) -> tuple[Array, Array]:
        """pair_index and epoch (int64) of the next global batch, all ranks' pairs in order of rank; reads no pair."""
        return self._batches.places(self.position, self.position + self.batch_size)

    def close(self) -> None:
        """Stop the workers; the next batch starts them again."""
        if self._prefetched is not None:
            self._prefetched.close()
            self._prefetched = None

    def state_dict(self) -> dict[str, Any]:
        """The position and everything that the order depends on; the same on every rank."""
        return {"version": STATE_VERSION, "position": self.position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where the stream that returned `state` stopped. Refuses a state of another sequence."""
        if state.get("version") != STATE_VERSION:
            raise Refused(f"the stream's state has version {state.get('version')!r}: this reads {STATE_VERSION}")
        identity = self._identity()
        differing = mismatches({name: state.get(name) for name in identity}, identity)
        if differing:
            raise Refused(
                f"the stream's state is of another order of pairs: {join_first([*map(format_mismatch, differing)])}"
            )
        position = state.get("position")
        if not isinstance(position, int) or position < 0 or position % self.batch_size:
            raise Refused(f"the stream's position is {position!r}: it must be a multiple of {self.batch_size}, a batch")
        self.close()
        self.position = position

    def _identity(self) -> dict[str, Any]:
        """Everything that the sequence of batches depends on."""
        return {
            "seed": self._order.seed,
            "window": self._order.window,
            "first": self.view.first,
            "size": self.view.size,
            "pairs_per_shard": self.view.spec.pairs_per_shard,
            "batch_size": self.batch_size,
            "fingerprint": self.view.spec.fingerprint,
        }

    def _batch(self, number: int) -> PairBatch:
        if self._num_workers:
            if self._prefetched is None:
                self._prefetched = PrefetchedBatches(
                    self._batches, number, self._num_workers, self._prefetch, self._pin_memory
                )
            return next(self._prefetched)
        batch = self._batches[number]
        return batch.pin_memory() if self._pin_memory else batch


def _refuse_impossible(
    batch_size: int, rank: int, world_size: int, num_workers: int, prefetch: int, pin_memory: bool
) -> None:
    if batch_size < 1 or world_size < 1 or batch_size % world_size:
        raise Refused(_unequal_parts(batch_size, world_size))
    if not 0 <= rank < world_size:
        raise Refused(f"rank is {rank}: it must be in 0 .. {world_size - 1}")
    if num_workers < 0 or prefetch < 1:
        raise Refused(f"num_workers is {num_workers} and prefetch {prefetch}: they must be at least 0 and 1")
    if pin_memory and not torch.cuda.is_available():
        raise Refused("memory can be pinned for a GPU only, and torch finds none: set pin_memory to False")


def _unequal_parts(batch_size: int, world_size: int) -> str:
    message = f"a batch of {batch_size} cannot be cut into {world_size} equal parts, one for each process"
    if batch_size < 1 or world_size < 1:
        return f"{message}: both must be at least 1"
    fewer = next(size for size in range(min(batch_size, world_size), 0, -1) if batch_size % size == 0)
    more = -(-batch_size // world_size) * world_size
    return f"{message}: start {fewer}, or take batches of {more} pairs"


def _cache(folder: Path | None, max_bytes: int, view: View, window: int) -> ShardCache:
    """The cache of a remote root. Refuses one so small that the same shards would be downloaded repeatedly."""
    sizes = sorted((row.num_bytes for row in view.rows), reverse=True)
    needed = sum(sizes[: 2 * window])
    if max_bytes < needed:
        raise Refused(
            f"cache_bytes is {max_bytes}: two windows of {window} shards take {needed}; allow as much, or shrink window"
        )
    return ShardCache(folder or home_folder() / "shards", max_bytes)
