"""Shards mapped into memory, as they lie on disk: a sample is copied out when a batch asks for it, and not before."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from shards.core.errors import Failed
from shards.dataset.manifest import View
from shards.dataset.manifest_row import ManifestRow
from shards.dataset.reader import FramedSamples, framed_samples, pairs_in_place, regenerated_noise, repairable
from shards.format.content_rules import broken_rules, wrong_noise
from shards.format.pairs import Pairs
from shards.format.spec import Array
from shards.format.tar_layout import BLOCK, Member, layout_of
from shards.streaming.memory_map import MappedFiles
from shards.streaming.shard_source import ShardSource


class ShardWindow:
    """Up to `capacity` shards of a view, each held against its row as it comes in; the least recently used goes."""

    def __init__(self, source: ShardSource, view: View, capacity: int) -> None:
        self._source = source
        self._view = view
        spec, self._layout = view.spec, layout_of(view.spec)
        count, (num_tokens, codebook_dim) = spec.pairs_per_shard, spec.noise_shape
        self._free = list(range(capacity))
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._files = MappedFiles(capacity, max((row.num_bytes for row in view.rows), default=0))
        # Memory that is never written to is never there: a small view takes little, whatever the capacity.
        self._label = np.empty((capacity, count), dtype=np.int64)
        self._block = np.empty((capacity, count), dtype=np.int64)
        self._tokens = self._column(self._layout.tokens, spec.token_dtype.newbyteorder("<"), num_tokens)
        if spec.noise == "stored":
            self._noise = self._column(self._layout.noise, np.dtype("<f2"), num_tokens * codebook_dim)
        else:
            self._noise = np.empty((capacity, count, num_tokens * codebook_dim), dtype=np.float16)

    def gather(self, pair_index_B: Array) -> Pairs:
        """Pairs by their index, in the order asked for.

        Args:
            pair_index_B: of the view, out of at most `capacity` shards.

        Raises:
            Failed: a shard is missing or damaged; names it and the remedy.
        """
        spec = self._view.spec
        shard_B, place_B = np.divmod(pair_index_B, spec.pairs_per_shard)
        distinct, which_B = np.unique(shard_B, return_inverse=True)
        slots = [self._slot(shard) for shard in distinct.tolist()]
        pairs = self._pairs(pair_index_B, np.array(slots)[which_B], place_B)
        for shard, slot in zip(distinct.tolist(), slots, strict=True):
            if not self._files.is_unchanged(slot):
                path = self._source.path(self._row(shard))
                raise Failed(f"{path}: it was written to while it was read; run the same command again")
        return pairs

    def _slot(self, shard: int) -> int:
        """Where a shard lies, from now on the most recently used one."""
        slot = self._slots.pop(shard, None)
        if slot is not None and not self._files.is_unchanged(slot):
            self._free.append(slot)
            slot = None
        if slot is None:
            slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
            try:
                self._load(shard, slot)
            except BaseException:
                self._free.append(slot)
                raise
        self._slots[shard] = slot
        return slot

    def _load(self, shard: int, slot: int) -> None:
        row = self._row(shard)
        with repairable(self._source.root, self._source.path(row)):
            if not self._source.map(row, self._files, slot, lambda: self._inspect(row, slot)):
                self._take_apart(row, slot)

    def _row(self, shard: int) -> ManifestRow:
        rows = self._view.rows
        return rows[shard - rows[0].first_pair // self._view.spec.pairs_per_shard]

    def _take_apart(self, row: ManifestRow, slot: int) -> FramedSamples:
        """What is not used where it lies: labels, noise that is made again, and where each sample begins."""
        spec = self._view.spec
        samples = framed_samples(spec, row, self._files.data[slot, : row.num_bytes])
        self._label[slot], self._block[slot] = samples.label_B, samples.blocks[:-1]
        if spec.noise == "counter":
            self._noise[slot] = regenerated_noise(spec, row, samples.rows).reshape(row.num_pairs, -1)
        return samples

    def _inspect(self, row: ManifestRow, slot: int) -> None:
        """Holds a slot's content against the rules of the data set.

        Raises:
            Failed: naming the first rule that it breaks.
        """
        spec, samples = self._view.spec, self._take_apart(row, slot)
        made_again = None if spec.noise == "stored" else self._noise[slot].reshape(-1, *spec.noise_shape)
        pairs = pairs_in_place(spec, row, samples, made_again)
        for _, problem in broken_rules(spec, pairs, wrong_noise(spec, pairs, whole=False)):
            raise Failed(problem)

    def _pairs(self, index_B: Array, slot_B: Array, place_B: Array) -> Pairs:
        """The pairs at these places of these slots, their captions left alone."""
        spec, block_B = self._view.spec, self._block[slot_B, place_B]
        noise_BN = self._noise[slot_B, block_B if spec.noise == "stored" else place_B]
        return Pairs(
            index_B=index_B,
            noise_BLC=noise_BN.reshape(-1, *spec.noise_shape),
            tokens_BL=self._tokens[slot_B, block_B],
            label_B=self._label[slot_B, place_B],
        )

    def _column(self, member: Member, dtype: np.dtype, count: int) -> Array:
        """One member of samples that begin at each block of every slot, (capacity, blocks, count), where it lies."""
        data = self._files.data
        blocks = (data.shape[1] - self._layout.stride) // BLOCK + 1
        return np.ndarray(
            (len(data), max(0, blocks), count),
            dtype,
            data.base,
            offset=member.data.start,
            strides=(data.strides[0], BLOCK, dtype.itemsize),
        )
