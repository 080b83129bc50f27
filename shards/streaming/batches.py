"""The batches of one rank by their number: a pure mapping, so that any process can make any batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from shards.dataset.manifest import View
from shards.format.pairs import Pairs
from shards.format.spec import Array
from shards.streaming.order import Order, rank_slice
from shards.streaming.shard_source import ShardSource
from shards.streaming.shard_window import ShardWindow


@dataclass(frozen=True)
class PairBatch:
    """A batch on the CPU."""

    index_B: torch.Tensor  # pair_index, int64
    epoch_B: torch.Tensor  # number of the epoch, from 0, int64
    noise_BLC: torch.Tensor  # float16 as stored; the GPU receives half the bytes and converts
    tokens_BL: torch.Tensor  # int64
    label_B: torch.Tensor  # int64

    def pin_memory(self) -> PairBatch:
        """The same batch in pinned memory, from which a GPU copies asynchronously."""
        return PairBatch(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})


@dataclass(frozen=True)
class PairBatches(Dataset[PairBatch]):
    """Maps the number of a global batch to the part of it that belongs to one rank."""

    source: ShardSource
    view: View
    order: Order
    batch_size: int  # of the global batch, all ranks together
    rank: int
    world_size: int

    def __getitem__(self, number: int) -> PairBatch:
        start, stop = rank_slice(number, self.batch_size, self.rank, self.world_size)
        # One window at a time: however large the batch, no more shards than those of one window are needed at once.
        parts = [self._shards.gather(self.view.first + places_B) for places_B in self.order.pieces(start, stop)]
        pairs = parts[0] if len(parts) == 1 else Pairs.concatenate(parts)
        return PairBatch(
            index_B=torch.from_numpy(pairs.index_B),
            epoch_B=torch.from_numpy(np.arange(start, stop, dtype=np.int64) // self.order.epoch_size),
            noise_BLC=torch.from_numpy(pairs.noise_BLC),
            tokens_BL=torch.from_numpy(pairs.tokens_BL.astype(np.int64)),
            label_B=torch.from_numpy(pairs.label_B),
        )

    def places(self, start: int, stop: int) -> tuple[Array, Array]:
        """pair_index and epoch, int64, at positions `start` .. `stop - 1` of the endless sequence."""
        epoch_B = np.arange(start, stop, dtype=np.int64) // self.order.epoch_size
        return self.view.first + self.order.indices(start, stop), epoch_B

    @cached_property
    def _shards(self) -> ShardWindow:
        """Created on first use, in the process that reads: open files are not sent to workers."""
        # A batch may end one window and begin the next.
        return ShardWindow(self.source, self.view, min(2 * self.order.window, len(self.view.rows)))
