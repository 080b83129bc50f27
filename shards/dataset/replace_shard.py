"""Replaces a damaged shard by a regenerated one, after comparing it with the committed hash or the remaining tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.core.errors import Failed, Refused
from shards.dataset.manifest_row import ManifestRow, read_row, replace_row, shard_path, write_row
from shards.dataset.writer import shard_and_row
from shards.format.caption_members import sample_blocks, sample_rows
from shards.format.pairs import Pairs
from shards.format.spec import Array, PairSpec
from shards.format.tar_layout import BLOCK, has_intact_header, layout_of
from shards.storage.files import commit_bytes, has_sha256, read_bytes
from shards.storage.paths import Location


@dataclass(frozen=True)
class Replacement:
    """How a regenerated shard compares with the one that it replaces."""

    row: ManifestRow  # after the replacement
    is_equal: bool  # the new bytes equal the committed ones; then the committed row is kept
    num_tokens: int
    num_compared: int = 0  # readable tokens in the old file; 0 if `is_equal`
    num_differing: int = 0  # how many of these differ from the new ones, through other arithmetic or through the damage


def replace_shard(
    root: Location,
    spec: PairSpec,
    shard_index: int,
    pairs: Pairs,
    row_extras: Mapping[str, Any],
    committed: ManifestRow | None,
) -> Replacement:
    """Replace a damaged or lost shard.

    If the bytes equal the committed ones, only the file is restored. Otherwise the file and then the row are replaced.
    A shard that has a row always keeps one, and if the process is killed, either the damage is still detected or the
    shard is intact.

    Args and Raises as `commit_shard`; `committed` is the row that was committed with the shard, None if it is lost.
    """
    data, row = shard_and_row(spec, shard_index, pairs, row_extras)
    path = shard_path(root, row.shard)
    if committed is not None and committed.same_file(row):
        if not has_sha256(path, committed.sha256):
            commit_bytes(path, data)
        if not _has_row(root, committed):
            # A joined table that contains the row stays valid.
            write_row(root, committed, exclusive=False)
        return Replacement(committed, True, pairs.tokens_BL.size)
    blocks = sample_blocks(spec, np.frombuffer(data, dtype=np.uint8), len(pairs))
    num_compared, num_differing = _compare_tokens(spec, pairs, blocks, path)
    commit_bytes(path, data)
    replace_row(root, row)
    return Replacement(row, False, pairs.tokens_BL.size, num_compared, num_differing)


def _has_row(root: Location, row: ManifestRow) -> bool:
    try:
        return read_row(root, row.shard) == row
    except (Failed, Refused):
        return False


def _compare_tokens(spec: PairSpec, pairs: Pairs, blocks: Array, path: Location) -> tuple[int, int]:
    """Number of tokens in the old file that are at their place, and how many of them differ from the new ones."""
    try:
        data = read_bytes(path)
    except (Failed, Refused):
        return 0, 0
    layout = layout_of(spec)
    # Captions are the same, so samples start at the same offsets as in the new file.
    count = int(np.searchsorted(blocks[1:] * BLOCK, len(data), side="right"))
    if not count:
        return 0, 0
    rows = sample_rows(layout, np.frombuffer(data, dtype=np.uint8), blocks[: count + 1])
    readable = np.flatnonzero(has_intact_header(layout, layout.tokens, rows, pairs.index_B[:count]))
    old_bytes = np.ascontiguousarray(rows[readable][:, layout.tokens.data])
    old_tokens_RL = old_bytes.view(spec.token_dtype.newbyteorder("<"))
    return old_tokens_RL.size, int(np.count_nonzero(old_tokens_RL != pairs.tokens_BL[readable]))
