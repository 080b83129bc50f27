"""Reads committed shards: checks a file against its manifest row and parses it as a matrix, one sample per row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from shards.core.errors import Failed
from shards.dataset.manifest import View
from shards.dataset.manifest_row import ManifestRow, shard_path
from shards.format.caption_members import read_texts, sample_blocks, sample_rows
from shards.format.content_rules import broken_rules, wrong_noise
from shards.format.noise import gaussian_noise
from shards.format.pairs import Pairs, checksum
from shards.format.spec import Array, PairSpec
from shards.format.tar_layout import BLOCK, layout_of, misframed_rows, read_labels
from shards.storage.files import read_bytes, sha256_bytes, xxh3_bytes
from shards.storage.paths import Location


def read_shard(root: Location | str, spec: PairSpec, row: ManifestRow, verify: bool = True, rules: bool = True) -> Pairs:
    """Read all pairs of a shard.

    Headers and padding are always checked.

    Args:
        root: the data set.
        spec: its spec.
        row: the shard's manifest row.
        verify: check size and hashes of the file against the row.
        rules: with `verify`, also check the content against its rules (of noise, the first numbers of each pair).

    Returns:
        noise (B, L, C) float16, tokens (B, L), labels (B,) and, if there are any, captions.

    Raises:
        Failed: the file is missing, differs from what its writer committed, or breaks a rule.
    """
    path = shard_path(root, row.shard)
    with repairable(root, path):
        data = read_bytes(path)
        if verify:
            check_file(row, data)
        pairs = decode_shard(spec, row, data)
        if verify and rules:
            for _, problem in broken_rules(spec, pairs, wrong_noise(spec, pairs, complete=False)):
                raise Failed(problem)
        return pairs


def read_view(root: Location | str, view: View) -> Iterator[Pairs]:
    """The pairs of a view in order, one shard at a time. Raises as `read_shard`."""
    for row in view.rows:
        pairs = read_shard(root, view.spec, row)
        inside_B = (pairs.index_B >= view.first) & (pairs.index_B < view.first + view.size)
        yield pairs if inside_B.all() else pairs.take(inside_B)


@contextmanager
def repairable(root: object, path: object) -> Iterator[None]:
    """Add the shard's path and the repair command to a `Failed` raised in the block."""
    try:
        yield
    except Failed as error:
        raise Failed(f"{path}: {error}; run `tokenleap shards repair {root}`") from error


def check_file(row: ManifestRow, data: bytes) -> None:
    """Check size and all hashes of a shard's bytes against its row. Raises `Failed` if they differ."""
    if len(data) != row.num_bytes:
        raise Failed(f"it has {len(data)} bytes, but {row.num_bytes} were committed")
    _check_hash(row, "sha256", sha256_bytes(data))
    check_digest(row, data)


def check_digest(row: ManifestRow, data: bytes | memoryview) -> None:
    """Check a shard's bytes against the fastest hash in its row: xxh3_128, or sha256 in rows without it."""
    if row.xxh3_128 is None:
        _check_hash(row, "sha256", sha256_bytes(data))
    else:
        _check_hash(row, "xxh3_128", xxh3_bytes(data))


def _check_hash(row: ManifestRow, kind: str, computed: str) -> None:
    if computed != (committed := getattr(row, kind)):
        raise Failed(f"its {kind} is {computed}, but {committed} was committed")


def decode_shard(spec: PairSpec, row: ManifestRow, data: bytes) -> Pairs:
    """Decode a shard's bytes to its pairs. Raises `Failed` if the writer would have written other bytes for this row."""
    samples = framed_samples(spec, row, np.frombuffer(data, dtype=np.uint8))
    noise_BLC = None if spec.noise == "stored" else regenerated_noise(spec, row, samples.rows)
    pairs = pairs_in_place(spec, row, samples, noise_BLC)
    # Copies, so that the bytes of the file can be freed; regenerated noise is contiguous already.
    return replace(
        pairs,
        noise_BLC=np.ascontiguousarray(pairs.noise_BLC),
        tokens_BL=np.ascontiguousarray(pairs.tokens_BL, spec.token_dtype),
    )


class FramedSamples(NamedTuple):
    """A parsed shard whose headers and padding are as the writer writes them."""

    rows: Array  # (B, stride) uint8, one sample per row, without its caption
    label_B: Array  # int64
    text_B: Array | None  # captions, str as objects; None if labels are classes
    blocks: Array  # first block of each sample in the file, and the block after the last, (B + 1,) int64


def framed_samples(spec: PairSpec, row: ManifestRow, data: Array) -> FramedSamples:
    """Parse a shard's bytes (uint8) and check its headers and padding. Raises as `decode_shard`."""
    layout = layout_of(spec)
    blocks = sample_blocks(spec, data, row.num_pairs)
    rows = sample_rows(layout, data, blocks)
    try:
        label_B = read_labels(layout, rows)
    except ValueError as error:
        raise Failed("a label is not a number") from error
    index_B = np.arange(row.first_pair, row.first_pair + row.num_pairs, dtype=np.int64)
    misframed = misframed_rows(layout, rows, index_B, label_B)
    if len(misframed):
        raise Failed(f"the sample of pair {index_B[misframed[0]]} does not have the layout of this data set")
    text_B = None if spec.captions is None else read_texts(layout, data, blocks, index_B)
    if data[int(blocks[-1]) * BLOCK :].any():
        raise Failed("there are data after its last sample")
    return FramedSamples(rows, label_B, text_B, blocks)


def pairs_in_place(spec: PairSpec, row: ManifestRow, samples: FramedSamples, noise_BLC: Array | None) -> Pairs:
    """A shard's pairs as views of its bytes, with `noise_BLC` as their noise or, if None, the stored noise."""
    rows, layout = samples.rows, layout_of(spec)
    if noise_BLC is None:
        noise_BLC = rows[:, layout.noise.data].view("<f2").reshape(len(rows), *spec.noise_shape)
    return Pairs(
        np.arange(row.first_pair, row.first_pair + row.num_pairs, dtype=np.int64),
        noise_BLC,
        rows[:, layout.tokens.data].view(spec.token_dtype.newbyteorder("<")),
        samples.label_B,
        samples.text_B,
    )


def regenerated_noise(spec: PairSpec, row: ManifestRow, rows: Array) -> Array:
    """Noise (B, L, C) float16 of a shard with checksums only; raises `Failed` if this platform computes other bits."""
    noise_BLC = gaussian_noise(spec.seed, row.first_pair, row.num_pairs, spec.noise_shape)
    recorded = rows[:, layout_of(spec).noise.data].view("<u4")[:, 0]
    computed = np.fromiter((checksum(noise_LC) for noise_LC in noise_BLC), dtype=np.uint32, count=row.num_pairs)
    wrong = np.flatnonzero(recorded != computed)
    if len(wrong):
        raise Failed(
            f"the noise of pair {row.first_pair + wrong[0]} regenerated from its counter "
            "does not match the checksum of the noise that was mapped"
        )
    return noise_BLC
