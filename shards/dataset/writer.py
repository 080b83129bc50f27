"""Writes a shard: encodes pairs as a deterministic tar, then commits the file and its manifest row."""

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
from shards.storage.files import commit_bytes, has_sha256, pop_bytes, sha256_bytes, xxh3_bytes
from shards.storage.paths import Location


def shard_bytes(spec: PairSpec, pairs: Pairs) -> bytes:
    """Encode pairs, checked by `check_pairs`, as a tar. The same pairs give the same bytes.

    Changing any byte breaks: SHARD FORMAT.
    """
    # Imported here because webdataset imports torch, which reading and listing shards do not need.
    from webdataset import TarWriter

    check_pairs(spec, pairs)
    buffer = io.BytesIO()
    # The mtime is an integer: for a float, webdataset writes an additional block per member.
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
    """Commit a shard's tar and then its row, so that no row exists without its tar.

    If the process is killed, the same call completes the commit. Of several writers of one shard, the first row
    wins, and the work of the others is discarded.

    Args:
        root: the data set, which exists.
        spec: its spec.
        shard_index: the shard's number, from 0.
        pairs: all pairs of the shard.
        row_extras: the row's columns seconds, host, device, batch_size and versions.

    Returns:
        The committed row, written by this or by an earlier writer.

    Raises:
        Failed: the pairs are not those of this shard, or the disk is full.
        Refused: the location is not writable, or contains other pairs.
    """
    if (existing := committed_row(root, spec, shard_name(shard_index))) is not None:
        return existing
    data, row = shard_and_row(spec, shard_index, pairs, row_extras)
    displaced = _put_tar(root, spec, row, data)
    committed = row if write_row(root, row) else committed_row(root, spec, row.shard)
    if committed is None:
        raise Failed(f"the row of {row.shard} in {root} was removed while it was written; run the same command again")
    # Both the writer of the row and a writer that displaced its tar check once more: the later of them restores it.
    path = shard_path(root, row.shard)
    contents = displaced | {row.sha256: data}
    if committed.sha256 in contents and not has_sha256(path, committed.sha256):
        commit_bytes(path, contents[committed.sha256])
    return committed


def shard_and_row(
    spec: PairSpec, shard_index: int, pairs: Pairs, row_extras: Mapping[str, Any]
) -> tuple[bytes, ManifestRow]:
    """The bytes of a shard's tar, and its manifest row. Raises `Failed` if the pairs are not those of this shard."""
    name = shard_name(shard_index)
    first_pair = shard_index * spec.pairs_per_shard
    if not np.array_equal(pairs.index_B, np.arange(first_pair, first_pair + spec.pairs_per_shard)):
        raise Failed(f"{name} must contain the pairs {first_pair} .. {first_pair + spec.pairs_per_shard - 1} in order")
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
    """Commit a tar unless another writer's row exists, and return the displaced tars by sha256.

    A displaced tar is kept rather than overwritten, so that it can be restored if its writer wins.
    """
    path = shard_path(root, row.shard)
    displaced: dict[str, bytes] = {}
    while not commit_bytes(path, data, exclusive=True):
        # The tar of a killed or of a running writer; its bytes are equal unless its device computes differently.
        if has_sha256(path, row.sha256) or committed_row(root, spec, row.shard) is not None:
            break
        if (content := pop_bytes(path)) is not None:
            displaced[sha256_bytes(content)] = content
    return displaced


def committed_row(root: Location | str, spec: PairSpec, name: str) -> ManifestRow | None:
    """The row of a committed shard, None if it is not committed. Raises `Refused` if it belongs to other pairs."""
    row = read_row(root, name)
    if row is not None and (problem := row_problem(spec, row)):
        raise Refused(f"{root} already contains {name}: {problem}")
    return row
