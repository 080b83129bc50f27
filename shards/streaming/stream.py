"""PairStream: endless batches of pairs for training, exact in order and in resuming."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from shards.core.errors import Refused
from shards.dataset.manifest import View
from shards.format.spec import Array
from shards.storage.paths import Location, location
from shards.streaming.batches import PairBatch, PairBatches
from shards.streaming.download_cache import DEFAULT_BYTES, ShardCache, default_folder
from shards.streaming.hash_ledger import HashCache, job_folder
from shards.streaming.order import Order
from shards.streaming.prefetch import PrefetchedBatches
from shards.streaming.shard_source import ShardSource

STATE_VERSION = 1


class PairStream(Iterator[PairBatch]):
    """This rank's share of the endless sequence of global batches.

    The sequence depends on (view, seed, window) alone; `position`, how many of its pairs all ranks together
    have consumed, is all the state there is: a stream resumes under any world size that divides the batch.
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
            root: the data set's folder.
            view: which of its pairs.
            batch_size: of the global batch, all ranks together.
            seed: of the order.
            rank: which share of each batch this process takes.
            world_size: into how many shares a batch is cut.
            window: shards whose samples are shuffled together.
            num_workers: processes that read ahead, 0 for none; the batches are the same.
            prefetch: batches that each of them makes ahead.
            pin_memory: give batches in memory that a GPU can copy from while the CPU goes on.
            cache_dir: where shards of a remote root are kept, `${TOKENLEAP_HOME:-~/.cache/tokenleap}/shards` by default;
                shared by all processes of this host.
            cache_bytes: what they may take there.

        Raises:
            Refused: an empty view, a batch that cannot be cut into equal shares, a cache too small for the window,
                pinned memory without a GPU.
        """
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise Refused(_no_equal_shares(batch_size, world_size))
        if not 0 <= rank < world_size:
            raise Refused(f"rank is {rank}: it must lie in 0 .. {world_size - 1}")
        if num_workers < 0 or prefetch < 1:
            raise Refused(
                f"num_workers is {num_workers} and prefetch {prefetch}: they must be at least 0 and 1"
            )
        if pin_memory and not torch.cuda.is_available():
            raise Refused(
                "memory can be pinned for a GPU only, and there is none here: set pin_memory to False"
            )
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
        # What one process hashes needs no note on disk.
        hash_cache = HashCache(job_folder() if num_workers or world_size > 1 else None)
        source = ShardSource(self.root, hash_cache, cache)
        self._batches = PairBatches(source, view, order, batch_size, rank, world_size)
        self._ahead: PrefetchedBatches | None = None

    def __next__(self) -> PairBatch:
        try:
            batch = self._batch(self.position // self.batch_size)
        except BaseException:
            # What the workers made ahead of a failure does not follow it: asked again, begin again.
            self.close()
            raise
        # Only a batch that is complete counts as consumed.
        self.position += self.batch_size
        return batch

    def upcoming(self) -> tuple[Array, Array]:
        """Of all pairs of the next global batch, every rank's in turn: pair_index and epoch, int64; reads no pair."""
        start, stop = self.position, self.position + self.batch_size
        return self._batches.places(start, stop)

    def close(self) -> None:
        """Ends the workers; the next batch, if it is asked for, starts them again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def state_dict(self) -> dict[str, Any]:
        """How far the pairs are consumed, and all that their order depends on; the same on every rank."""
        return {"version": STATE_VERSION, "position": self.position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the stream that gave `state` stood.

        Raises:
            Refused: a state that this stream cannot honour; names every difference.
        """
        if state.get("version") != STATE_VERSION:
            raise Refused(
                f"the stream's state has version {state.get('version')!r}: this reads {STATE_VERSION}"
            )
        here = self._identity()
        differing = [
            f"{name}: {state.get(name)!r} -> {value!r}"
            for name, value in here.items()
            if state.get(name) != value
        ]
        if differing:
            raise Refused(
                f"the stream's state is of another order of pairs (there -> here): {'; '.join(differing)}"
            )
        position = state.get("position")
        if not isinstance(position, int) or position < 0 or position % self.batch_size:
            raise Refused(
                f"the stream's position is {position!r}: it must be a multiple of {self.batch_size}, a batch"
            )
        self.close()
        self.position = position

    def _identity(self) -> dict[str, Any]:
        """All that the sequence of batches depends on."""
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
            if self._ahead is None:
                self._ahead = PrefetchedBatches(
                    self._batches, number, self._num_workers, self._prefetch, self._pin_memory
                )
            return next(self._ahead)
        batch = self._batches[number]
        return batch.pin_memory() if self._pin_memory else batch


def _no_equal_shares(batch_size: int, world_size: int) -> str:
    message = f"a batch of {batch_size} cannot be cut into {world_size} equal shares, one for each process"
    if batch_size < 1 or world_size < 1:
        return f"{message}: both must be at least 1"
    fewer = next(size for size in range(min(batch_size, world_size), 0, -1) if batch_size % size == 0)
    more = -(-batch_size // world_size) * world_size
    return f"{message}: start {fewer}, or take batches of {more} pairs"


def _cache(folder: Path | None, max_bytes: int, view: View, window: int) -> ShardCache:
    """The cache of a remote root.

    Raises:
        Refused: it is too small to hold what neighbouring batches need, and would fetch shards again and again.
    """
    sizes = sorted((row.num_bytes for row in view.rows), reverse=True)
    needed = sum(sizes[: 2 * window])
    if max_bytes < needed:
        raise Refused(
            f"cache_bytes is {max_bytes}: two windows of {window} shards take {needed}; allow as much, or shrink window"
        )
    return ShardCache(folder or default_folder(), max_bytes)
