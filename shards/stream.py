"""PairStream: endless batches of pairs for training, exact in order and in resuming."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shards.errors import Refused
from shards.locations import Location, location
from shards.manifest import View
from shards.order import Order, rank_slice
from shards.reader import read_shard
from shards.record import Array, Pairs

STATE_VERSION = 1


@dataclass(frozen=True)
class PairBatch:
    """A batch on the CPU.

    Attributes:
        index_B: pair_index, int64.
        epoch_B: how often the view had been gone through before, int64.
        noise_BLC: float32 (exactly the stored float16 numbers).
        tokens_BL: int64.
        label_B: int64.
    """

    index_B: torch.Tensor
    epoch_B: torch.Tensor
    noise_BLC: torch.Tensor
    tokens_BL: torch.Tensor
    label_B: torch.Tensor


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

        Raises:
            Refused: an empty view, or a batch that cannot be cut into equal shares.
        """
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise Refused(f"a batch of {batch_size} cannot be cut into {world_size} equal shares")
        if not 0 <= rank < world_size:
            raise Refused(f"rank is {rank}: it must lie in 0 .. {world_size - 1}")
        try:
            self._order = Order(view.sizes, seed, window)
        except ValueError as error:
            raise Refused(f"cannot stream {view.size} pairs of {root}: {error}") from error
        self.root = location(root)
        self.view = view
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.position = 0
        # A batch may end one window and begin the next.
        self._capacity = 2 * window
        self._decoded: OrderedDict[int, Pairs] = OrderedDict()
        self._hashed: set[int] = set()

    def __next__(self) -> PairBatch:
        batch = self.position // self.batch_size
        start, stop = rank_slice(batch, self.batch_size, self.rank, self.world_size)
        pairs = self._gather(self.view.first + self._order.indices(start, stop))
        epoch_B = np.arange(start, stop, dtype=np.int64) // self._order.epoch_size
        # Only a batch that is complete counts as consumed.
        self.position += self.batch_size
        return PairBatch(
            index_B=torch.from_numpy(pairs.index_B),
            epoch_B=torch.from_numpy(epoch_B),
            noise_BLC=torch.from_numpy(pairs.noise_BLC.astype(np.float32)),
            tokens_BL=torch.from_numpy(pairs.tokens_BL.astype(np.int64)),
            label_B=torch.from_numpy(pairs.label_B),
        )

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

    def _gather(self, pair_index_B: Array) -> Pairs:
        """Pairs by their index, in the order asked for."""
        spec = self.view.spec
        shard_B, place_B = np.divmod(pair_index_B, spec.pairs_per_shard)
        by_shard = np.argsort(shard_B, kind="stable")
        distinct, starts = np.unique(shard_B[by_shard], return_index=True)
        groups = np.split(by_shard, starts[1:])
        parts = [
            self._shard(int(shard)).take(place_B[group])
            for shard, group in zip(distinct, groups, strict=True)
        ]
        back = np.empty_like(by_shard)
        back[by_shard] = np.arange(len(by_shard))
        return Pairs.concatenate(parts).take(back)

    def _shard(self, shard: int) -> Pairs:
        """A decoded shard; its file is hashed when this process first reads it."""
        pairs = self._decoded.pop(shard, None)
        if pairs is None:
            row = self.view.rows[shard - self.view.rows[0].first_pair // self.view.spec.pairs_per_shard]
            pairs = read_shard(self.root, self.view.spec, row, verify=shard not in self._hashed)
            self._hashed.add(shard)
            while len(self._decoded) >= self._capacity:
                self._decoded.popitem(last=False)
        self._decoded[shard] = pairs
        return pairs
