"""One shard: pairs -> deterministic tar -> committed file and row."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import repeat
from typing import Any

import numpy as np

from shards.core.errors import Failed, Refused
from shards.dataset.manifest_row import ManifestRow, read_row, row_problem, shard_name, shard_path, write_row
from shards.format.pairs import Pairs, check_pairs, encode_pair
from shards.format.spec import PairSpec
from shards.format.tar_layout import TAR_MODE, TAR_OWNER
from shards.storage.files import commit_bytes, holds, sha256_bytes, take_away, xxh3_bytes
from shards.storage.paths import Location


def shard_bytes(spec: PairSpec, pairs: Pairs) -> bytes:
    """The tar of these pairs, the same bytes for the same pairs. Changing any of them breaks: SHARD FORMAT.

    Raises:
        Failed: pairs that do not have the spec's shapes, dtypes and ranges.
    """
    # webdataset imports torch, which whoever only reads or lists shards does not need.
    from webdataset import TarWriter

    check_pairs(spec, pairs)
    buffer = io.BytesIO()
    # An integer mtime: any other makes webdataset spend another block on every member.
    with TarWriter(buffer, encoder=False, mtime=0, mode=TAR_MODE, user=TAR_OWNER, group=TAR_OWNER) as tar:
        for pair_index, noise_LC, tokens_L, pair_label, text in zip(
            pairs.index_B.tolist(),
            pairs.noise_BLC,
            pairs.tokens_BL,
            pairs.label_B.tolist(),
            repeat(None, len(pairs)) if pairs.text_B is None else pairs.text_B,
            strict=True,
        ):
            tar.write(encode_pair(spec, pair_index, noise_LC, tokens_L, pair_label, text))
    return buffer.getvalue()


def commit_shard(
    root: Location | str, spec: PairSpec, shard_index: int, pairs: Pairs, row_extras: Mapping[str, Any]
) -> ManifestRow:
    """Commits a shard's tar and then its row, in this order: a row never stands without its tar.

    Killed anywhere, the same call completes it. Of several writers of one shard the first row wins, and the
    others' work is discarded.

    Args:
        root: the data set's folder.
        spec: its spec, as in dataset.json.
        shard_index: which shard.
        pairs: all pairs of the shard, in the order of their index.
        row_extras: the columns seconds, host, device, batch_size and versions.

    Returns:
        The row that stands in the manifest, of this writer or of an earlier one.

    Raises:
        Failed: pairs that are not this shard's, or a disk that is full.
        Refused: the place cannot be written to, or holds other pairs.
    """
    if (winner := committed_row(root, spec, shard_name(shard_index))) is not None:
        return winner
    data, row = shard_and_row(spec, shard_index, pairs, row_extras)
    displaced = _put_tar(root, spec, row, data)
    committed = row if write_row(root, row) else committed_row(root, spec, row.shard)
    if committed is None:
        raise Failed(
            f"the row of {row.shard} in {root} was taken away while it was written; "
            "run the same command again"
        )
    # Whoever wrote the row and whoever displaced its tar look again: one of them comes last.
    path = shard_path(root, row.shard)
    theirs = displaced | {row.sha256: data}
    if committed.sha256 in theirs and not holds(path, committed.sha256):
        commit_bytes(path, theirs[committed.sha256])
    return committed


def shard_and_row(
    spec: PairSpec, shard_index: int, pairs: Pairs, row_extras: Mapping[str, Any]
) -> tuple[bytes, ManifestRow]:
    """The bytes of a shard's tar, and the row that vouches for them."""
    name = shard_name(shard_index)
    first_pair = shard_index * spec.pairs_per_shard
    if not np.array_equal(pairs.index_B, np.arange(first_pair, first_pair + spec.pairs_per_shard)):
        raise Failed(
            f"{name} must hold the pairs {first_pair} .. {first_pair + spec.pairs_per_shard - 1} in order"
        )
    data = shard_bytes(spec, pairs)
    row = ManifestRow(
        shard=name,
        first_pair=first_pair,
        num_pairs=len(pairs),
        num_bytes=len(data),
        sha256=sha256_bytes(data),
        xxh3_128=xxh3_bytes(data),
        fingerprint=spec.fingerprint,
        **row_extras,
    )
    return data, row


def _put_tar(root: Location | str, spec: PairSpec, row: ManifestRow, data: bytes) -> dict[str, bytes]:
    """Puts a tar under its name, unless a rival's row is there first; what had to give way, by its sha256.

    What gives way is taken rather than overwritten: should its writer turn out to have won, it can be put back.
    """
    path = shard_path(root, row.shard)
    displaced: dict[str, bytes] = {}
    while not commit_bytes(path, data, exclusive=True):
        # A killed writer's tar, or a living rival's: of the same bytes, unless its device computes otherwise.
        if holds(path, row.sha256) or committed_row(root, spec, row.shard) is not None:
            break
        if (content := take_away(path)) is not None:
            displaced[sha256_bytes(content)] = content
    return displaced


def committed_row(root: Location | str, spec: PairSpec, name: str) -> ManifestRow | None:
    """The row of a shard that is done, None where it is not.

    Raises:
        Refused: it holds other pairs.
        Failed: it cannot be read.
    """
    row = read_row(root, name)
    if row is not None and (problem := row_problem(spec, row)):
        raise Refused(f"{root} already holds {name}: {problem}")
    return row
