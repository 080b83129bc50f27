"""From a configuration to work units: pure functions, nothing is read or written here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkUnit:
    """The job that makes one shard."""

    shard_index: int
    first_pair: int
    num_pairs: int

    def batches(self, batch_size: int) -> list[range]:
        """The pair indices of each batch, cut at fixed multiples of `batch_size` inside the shard.

        Fixed cuts keep the bytes of a shard the same whoever makes it: matrix products of another shape round
        differently.
        """
        stop = self.first_pair + self.num_pairs
        return [range(at, min(at + batch_size, stop)) for at in range(self.first_pair, stop, batch_size)]


def work_unit(shard_index: int, pairs_per_shard: int) -> WorkUnit:
    """The unit that makes shard `shard_index`; shards are always full."""
    return WorkUnit(shard_index, shard_index * pairs_per_shard, pairs_per_shard)
