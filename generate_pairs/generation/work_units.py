"""From a configuration to work units: pure functions, nothing is read or written here."""

from __future__ import annotations

from dataclasses import dataclass

from shards.dataset.manifest_row import ManifestRow


@dataclass(frozen=True)
class WorkUnit:
    """The job that makes one shard.

    Attributes:
        shard_index: its place in the sequence.
        first_pair: pair_index of its first pair.
        num_pairs: pairs in it.
        batch_size: sequences the teacher makes at once.
        replaces: take the place of what is there, instead of leaving a shard that is done alone.
        committed: with `replaces`, the row that the shard was committed with, as far as it is known.
    """

    shard_index: int
    first_pair: int
    num_pairs: int
    batch_size: int
    replaces: bool = False
    committed: ManifestRow | None = None

    def batches(self) -> list[range]:
        """The pair indices of each batch, cut at fixed multiples of `batch_size` inside the shard.

        Fixed cuts keep the bytes of a shard the same whoever makes it: matrix products of another shape round
        differently.
        """
        stop = self.first_pair + self.num_pairs
        starts = range(self.first_pair, stop, self.batch_size)
        return [range(start, min(start + self.batch_size, stop)) for start in starts]


def work_unit(
    shard_index: int,
    pairs_per_shard: int,
    batch_size: int,
    replaces: bool = False,
    committed: ManifestRow | None = None,
) -> WorkUnit:
    """The unit that makes shard `shard_index`; shards are always full."""
    first_pair = shard_index * pairs_per_shard
    return WorkUnit(shard_index, first_pair, pairs_per_shard, batch_size, replaces, committed)


@dataclass(frozen=True)
class Task:
    """One of `count` processes that share a data set's shards without talking: `index`, counted from 0."""

    index: int
    count: int

    def owns(self, shard_index: int) -> bool:
        """Whether a shard is this task's to make."""
        return shard_index % self.count == self.index
