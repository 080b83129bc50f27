"""Work units and tasks: which pairs one job generates, in which batches. Nothing is read or written here."""

from __future__ import annotations

from dataclasses import dataclass

from shards.dataset.manifest_row import ManifestRow


@dataclass(frozen=True)
class WorkUnit:
    """The job that generates one shard of `num_pairs` pairs; shards are always full.

    With `replaces` it replaces an existing shard, whose committed row is `committed` if known.
    """

    shard_index: int
    num_pairs: int
    batch_size: int
    replaces: bool = False
    committed: ManifestRow | None = None

    def batches(self) -> list[range]:
        """The pair indices of each batch, cut at fixed multiples of `batch_size` inside the shard.

        Fixed cuts make the bytes independent of the worker: matrix products of other shapes round differently.
        """
        first = self.shard_index * self.num_pairs
        stop = first + self.num_pairs
        starts = range(first, stop, self.batch_size)
        return [range(start, min(start + self.batch_size, stop)) for start in starts]


@dataclass(frozen=True)
class Task:
    """One of `count` independent processes that divide a data set's shards; `index` counts from 0."""

    index: int
    count: int

    def owns(self, shard_index: int) -> bool:
        """Whether this task generates the shard."""
        return shard_index % self.count == self.index
