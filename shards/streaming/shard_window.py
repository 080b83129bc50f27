"""The few shards that training reads at a time, memory-mapped: a batch copies the samples it needs out of them."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from shards.core.errors import Failed
from shards.dataset.manifest import View
from shards.dataset.manifest_row import ManifestRow
from shards.dataset.reader import check_digest, framed_samples, pairs_in_place, regenerated_noise, repairable
from shards.format.caption_members import sample_blocks, sample_rows
from shards.format.content_rules import broken_rules, wrong_noise
from shards.format.pairs import Pairs, label
from shards.format.spec import Array, PairSpec
from shards.format.tar_layout import BLOCK, Layout, Member, layout_of
from shards.streaming.shard_source import ShardSource


@dataclass(frozen=True)
class MappedShard:
    """A shard's file, memory-mapped and checked; its labels follow from the pairs' indices."""

    file: FileIO  # open, see `is_unchanged`
    state: tuple[int, int]  # size and modification time of the file when it was mapped
    start_B: Array  # offset of each sample in the file, int64
    payload_FN: Array  # uint8, a view: the N bytes of tokens and noise of the sample that starts at offset F of the file
    noise_BLC: Array | None  # regenerated noise, float16, where only its checksum is stored

    def is_unchanged(self) -> bool:
        """Whether the file still has the size and modification time that it had when it was mapped."""
        return file_state(self.file) == self.state


class ShardWindow:
    """Up to `capacity` shards of a view; the least recently used one is closed first.

    A shard's file is hashed and its content checked once a process, and again whenever the file has changed. Committed
    shards are replaced, never written to; a file that is written to nevertheless is found, because its state is
    compared before and after each batch. Reading beyond the end of a file that shrinks in between ends the process
    with SIGBUS, as an unreadable disk does.
    """

    def __init__(self, source: ShardSource, view: View, capacity: int) -> None:
        self._source = source
        self._view = view
        self._capacity = capacity
        self._layout = layout_of(view.spec)
        self._payload = payload_of(self._layout, view.spec)
        self._shards: OrderedDict[int, MappedShard] = OrderedDict()
        self._checked: set[tuple[int, ...]] = set()

    def gather(self, pair_index_B: Array) -> Pairs:
        """Copy one or more pairs out of their shards, at most `capacity`, in the given order, without captions.

        Raises `Failed` with the remedy if a shard is missing or damaged, or changes while it is read.
        """
        spec, count = self._view.spec, len(pair_index_B)
        token_dtype = spec.token_dtype.newbyteorder("<")
        number_B, place_B = np.divmod(pair_index_B, spec.pairs_per_shard)
        # The slots of one shard after those of another.
        slots_B = np.argsort(number_B, kind="stable")
        sorted_B = number_B[slots_B]
        bounds = [0, *(np.flatnonzero(sorted_B[1:] != sorted_B[:-1]) + 1).tolist(), count]
        shards = {number: self._shard(number) for number in sorted_B[bounds[:-1]].tolist()}
        payload_BN = np.empty((count, self._payload.stop - self._payload.start), np.uint8)
        noise_BLC = np.empty((count, *spec.noise_shape), "<f2")
        for shard, (first, end) in zip(shards.values(), pairwise(bounds), strict=True):
            slot_B = slots_B[first:end]
            places_B = place_B[slot_B]
            payload_BN[slot_B] = shard.payload_FN[shard.start_B[places_B]]
            if shard.noise_BLC is not None:
                noise_BLC[slot_B] = shard.noise_BLC[places_B]
        for number, shard in shards.items():
            if not shard.is_unchanged():
                path = self._source.path(self._row(number))
                raise Failed(f"{path}: it was written to while it was read; run the same command again")
        tokens_BL = self._member(payload_BN, self._layout.tokens).view(token_dtype)
        if spec.noise == "stored":
            noise_BLC = self._member(payload_BN, self._layout.noise).view("<f2").reshape(noise_BLC.shape)
        # Each shard's labels were compared with this rule when it was checked.
        return Pairs(pair_index_B, noise_BLC, tokens_BL, label(pair_index_B, spec.num_classes))

    def _member(self, payload_BN: Array, member: Member) -> Array:
        """The bytes of one member of each sample, contiguous."""
        first = member.data.start - self._payload.start
        return np.ascontiguousarray(payload_BN[:, first : first + member.num_bytes])

    def _shard(self, number: int) -> MappedShard:
        """A shard, now the most recently used one."""
        shard = self._shards.pop(number, None)
        if shard is None or not shard.is_unchanged():
            if len(self._shards) >= self._capacity:
                self._shards.popitem(last=False)
            row = self._row(number)
            with repairable(self._source.root, self._source.path(row)):
                shard = self._source.load(row, lambda file: self._load(row, file))
        self._shards[number] = shard
        return shard

    def _row(self, number: int) -> ManifestRow:
        rows = self._view.rows
        return rows[number - rows[0].first_pair // self._view.spec.pairs_per_shard]

    def _load(self, row: ManifestRow, file: FileIO) -> MappedShard:
        """Map a file; check hash and content unless this process has checked this very state."""
        spec = self._view.spec
        # A descriptor of its own: the caller closes the file.
        file = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
        status = os.fstat(file.fileno())
        state = (*file_state(file), status.st_ino, status.st_dev, row.first_pair)
        if status.st_size != row.num_bytes:
            raise Failed(f"it has {status.st_size} bytes, but {row.num_bytes} were committed")
        try:
            # As a plain array: slices of np.memmap are several times slower.
            data = np.asarray(np.memmap(file, np.uint8, "r", shape=(row.num_bytes,)))
        except ValueError as error:
            raise Failed("it was written to while it was read") from error
        except OSError as error:
            raise Failed(f"cannot be mapped into memory: {error.strerror}; copy the data set to a local disk") from error
        is_checked = state in self._checked
        if is_checked:
            blocks = sample_blocks(spec, data, row.num_pairs)
            rows = sample_rows(self._layout, data, blocks)
        else:
            check_digest(row, data.data)
            samples = framed_samples(spec, row, data)
            blocks, rows = samples.blocks, samples.rows
        noise_BLC = regenerated_noise(spec, row, rows) if spec.noise == "counter" else None
        shard = MappedShard(
            file=file,
            state=state[:2],
            start_B=blocks[:-1] * BLOCK,
            payload_FN=sliding_window_view(data[self._payload.start :], self._payload.stop - self._payload.start),
            noise_BLC=noise_BLC,
        )
        if not is_checked:
            pairs = pairs_in_place(spec, row, samples, noise_BLC)
            for _, problem in broken_rules(spec, pairs, wrong_noise(spec, pairs, complete=False)):
                raise Failed(problem)
            if not shard.is_unchanged():
                raise Failed("it was written to while it was read")
            self._checked.add(state)
        return shard


def payload_of(layout: Layout, spec: PairSpec) -> slice:
    """The bytes of a sample from the first to the last of its tokens and, if it is stored, its noise."""
    members = [layout.tokens, *([layout.noise] if spec.noise == "stored" else [])]
    ends = [member.data.start + member.num_bytes for member in members]
    return slice(min(member.data.start for member in members), max(ends))


def file_state(file: FileIO) -> tuple[int, int]:
    """Size and modification time (nanoseconds) of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
