"""One committed shard -> pairs: read once, held against its row, taken apart as a matrix, a sample a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from shards.errors import Failed
from shards.layout import layout_of, misframed_rows, read_labels
from shards.locations import Location
from shards.noise import gaussian_noise
from shards.record import Array, Pairs, PairSpec, checksum
from shards.rows import ManifestRow, shard_path
from shards.rules import broken_rules, foreign_noise
from shards.storage import read_bytes, sha256_bytes, xxh3_bytes


def read_shard(
    root: Location | str, spec: PairSpec, row: ManifestRow, verify: bool = True, rules: bool = True
) -> Pairs:
    """All pairs of a shard.

    Args:
        root: the data set's folder.
        spec: the data set's spec.
        row: the shard's row in the manifest.
        verify: hold size and sha256 of the file against the row; what frames the payloads is always checked.
        rules: with `verify`, hold the content against its rules as well; noise by each pair's first numbers.

    Raises:
        Failed: the file is missing, is not, byte for byte, what its writer committed, or breaks a rule.
    """
    path = shard_path(root, row.shard)
    with repairable(root, path):
        data = read_bytes(path)
        if verify:
            check_file(row, data)
        pairs = decode_shard(spec, row, data)
        if verify and rules:
            for _, problem in broken_rules(spec, pairs, foreign_noise(spec, pairs, whole=False)):
                raise Failed(problem)
        return pairs


@contextmanager
def repairable(root: object, path: object) -> Iterator[None]:
    """Says of a `Failed` in the block which shard it is about, and what would mend it."""
    try:
        yield
    except Failed as error:
        raise Failed(f"{path}: {error}; run `onestep shards repair {root}`") from error


def check_file(row: ManifestRow, data: bytes) -> None:
    """Holds a shard's bytes against its row.

    Raises:
        Failed: another size, another sha256 or another xxh3_128.
    """
    if len(data) != row.num_bytes:
        raise Failed(f"holds {len(data)} bytes where {row.num_bytes} were committed")
    _check_sum(row, "sha256", sha256_bytes(data))
    check_digest(row, data)


def check_digest(row: ManifestRow, data: bytes | memoryview) -> None:
    """Holds a shard's bytes against the sum in its row that takes the least time: xxh3_128, or sha256 for want of it.

    Raises:
        Failed: it is another one.
    """
    if row.xxh3_128 is None:
        _check_sum(row, "sha256", sha256_bytes(data))
    else:
        _check_sum(row, "xxh3_128", xxh3_bytes(data))


def _check_sum(row: ManifestRow, kind: str, found: str) -> None:
    if found != (committed := getattr(row, kind)):
        raise Failed(f"its {kind} is {found} where {committed} was committed")


def decode_shard(spec: PairSpec, row: ManifestRow, data: bytes) -> Pairs:
    """A shard's bytes -> its pairs.

    Raises:
        Failed: bytes that the writer would not have written for this row.
    """
    rows, label_B = framed_rows(spec, row, np.frombuffer(data, dtype=np.uint8))
    layout = layout_of(spec)
    index_B = np.arange(row.first_pair, row.first_pair + row.num_pairs, dtype=np.int64)
    if spec.noise == "stored":
        noise_BLC = _column(rows, layout.noise.data, np.dtype("<f2")).reshape(len(rows), *spec.noise_shape)
    else:
        noise_BLC = regenerated_noise(spec, row, rows)
    tokens_BL = _column(rows, layout.tokens.data, spec.token_dtype.newbyteorder("<"))
    return Pairs(index_B, noise_BLC, tokens_BL.astype(spec.token_dtype, copy=False), label_B)


def framed_rows(spec: PairSpec, row: ManifestRow, data: Array) -> tuple[Array, Array]:
    """A shard's bytes as a matrix, once all that frames its payloads is what the writer puts there.

    Args:
        spec: the data set's spec.
        row: the shard's row in the manifest.
        data: uint8, the whole file.

    Returns:
        (B, stride) uint8, a sample a row and a view of `data`; labels (B,) int64.

    Raises:
        Failed: bytes that the writer would not have written for this row.
    """
    layout = layout_of(spec)
    if len(data) != layout.num_bytes(row.num_pairs):
        raise Failed(f"{row.num_pairs} pairs make {layout.num_bytes(row.num_pairs)} bytes, not {len(data)}")
    num_sample_bytes = row.num_pairs * layout.stride
    rows = data[:num_sample_bytes].reshape(row.num_pairs, layout.stride)
    try:
        label_B = read_labels(layout, rows)
    except ValueError as error:
        raise Failed("a label is not a number") from error
    index_B = np.arange(row.first_pair, row.first_pair + row.num_pairs, dtype=np.int64)
    misframed = misframed_rows(layout, rows, index_B, label_B)
    if len(misframed):
        raise Failed(f"the sample of pair {index_B[misframed[0]]} is not laid out as one of this data set")
    if data[num_sample_bytes:].any():
        raise Failed("something follows its last sample")
    return rows, label_B


def regenerated_noise(spec: PairSpec, row: ManifestRow, rows: Array) -> Array:
    """Noise (B, L, C) float16 of a shard that keeps only its checksums.

    Raises:
        Failed: the arithmetic of this platform gives other noise than was mapped.
    """
    noise_BLC = gaussian_noise(spec.seed, row.first_pair, row.num_pairs, spec.noise_shape)
    recorded = _column(rows, layout_of(spec).noise.data, np.dtype("<u4"))[:, 0]
    computed = np.fromiter(
        (checksum(noise_LC) for noise_LC in noise_BLC), dtype=np.uint32, count=row.num_pairs
    )
    differing = np.flatnonzero(recorded != computed)
    if len(differing):
        raise Failed(
            f"the noise of pair {row.first_pair + differing[0]} regenerated from its counter "
            "has another checksum than the noise that was mapped"
        )
    return noise_BLC


def _column(rows: Array, columns: slice, dtype: np.dtype) -> Array:
    """One member of every sample, copied out so that the rest of the file can go."""
    return np.ascontiguousarray(rows[:, columns]).view(dtype)
