"""A shard made again: proved equal to what was committed, or compared, token by token, with what is left of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.core.errors import Failed, Refused
from shards.dataset.manifest_row import ManifestRow, read_row, replace_row, restore_row, shard_path
from shards.dataset.writer import shard_and_row
from shards.format.caption_members import first_blocks, sample_rows
from shards.format.pairs import Pairs
from shards.format.spec import Array, PairSpec
from shards.format.tar_layout import BLOCK, holds_member, layout_of
from shards.storage.files import commit_bytes, holds, read_bytes
from shards.storage.paths import Location


@dataclass(frozen=True)
class Replacement:
    """How a shard that was made again compares with the one that it replaces.

    Attributes:
        row: the row that stands now.
        is_equal: whether the new bytes are those that were committed; then the committed row stands.
        num_tokens: tokens in the shard.
        num_compared: tokens of the old file that could still be read; not looked at where `is_equal`.
        num_differing: how many of these differ from the new ones, be it by other arithmetic or by the damage.
    """

    row: ManifestRow
    is_equal: bool
    num_tokens: int
    num_compared: int = 0
    num_differing: int = 0


def replace_shard(
    root: Location,
    spec: PairSpec,
    shard_index: int,
    pairs: Pairs,
    row_extras: Mapping[str, Any],
    committed: ManifestRow | None,
) -> Replacement:
    """Puts a shard in place of what is there: how a damaged or lost one is mended.

    Where the bytes are those that were committed, only the file is put back. Otherwise file and row are
    replaced, in this order: at no moment is a shard without a row that had one, and killed anywhere, the
    damage is still found, or the shard is whole.

    Args:
        root: the data set's folder.
        spec: its spec, as in dataset.json.
        shard_index: which shard.
        pairs: all pairs of the shard, in the order of their index.
        row_extras: as in `commit_shard`, for a new row.
        committed: the row that vouches for the shard as it was made, None where there is none any more.

    Raises:
        Failed, Refused: as `commit_shard`.
    """
    data, row = shard_and_row(spec, shard_index, pairs, row_extras)
    path = shard_path(root, row.shard)
    if committed is not None and committed.vouches_like(row):
        if not holds(path, committed.sha256):
            commit_bytes(path, data)
        if not _stands(root, committed):
            restore_row(root, committed)
        return Replacement(committed, True, pairs.tokens_BL.size)
    blocks = first_blocks(spec, np.frombuffer(data, dtype=np.uint8), len(pairs))
    num_compared, num_differing = _compared(spec, pairs, blocks, path)
    commit_bytes(path, data)
    replace_row(root, row)
    return Replacement(row, False, pairs.tokens_BL.size, num_compared, num_differing)


def _stands(root: Location, row: ManifestRow) -> bool:
    try:
        return read_row(root, row.shard) == row
    except (Failed, Refused):
        return False


def _compared(spec: PairSpec, pairs: Pairs, blocks: Array, path: Location) -> tuple[int, int]:
    """How many tokens of the old file lie where they belong, and how many of them are not the new ones."""
    try:
        data = read_bytes(path)
    except (Failed, Refused):
        return 0, 0
    layout = layout_of(spec)
    # Captions are the same, so samples begin where they begin in the new file.
    count = int(np.searchsorted(blocks[1:] * BLOCK, len(data), side="right"))
    if not count:
        return 0, 0
    rows = sample_rows(layout, np.frombuffer(data, dtype=np.uint8), blocks[: count + 1])
    readable = np.flatnonzero(holds_member(layout, layout.tokens, rows, pairs.index_B[:count]))
    old_bytes = np.ascontiguousarray(rows[readable][:, layout.tokens.data])
    old_tokens_RL = old_bytes.view(spec.token_dtype.newbyteorder("<"))
    return old_tokens_RL.size, int(np.count_nonzero(old_tokens_RL != pairs.tokens_BL[readable]))
