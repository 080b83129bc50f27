"""One committed shard -> pairs: read once, held against its row, taken apart as a matrix, a sample a row."""

from __future__ import annotations

import numpy as np

from shards.errors import Failed
from shards.layout import Layout, layout_of, misframed_rows, read_labels
from shards.locations import Location
from shards.noise import gaussian_noise
from shards.record import Array, Pairs, PairSpec, checksum
from shards.rows import ManifestRow, shard_path
from shards.storage import read_bytes, sha256_bytes


def read_shard(root: Location | str, spec: PairSpec, row: ManifestRow, verify: bool = True) -> Pairs:
    """All pairs of a shard.

    Args:
        root: the data set's folder.
        spec: the data set's spec.
        row: the shard's row in the manifest.
        verify: hold size and sha256 of the file against the row; what frames the payloads is always checked.

    Raises:
        Failed: the file is missing or is not, byte for byte, what its writer committed.
    """
    path = shard_path(root, row.shard)
    try:
        data = read_bytes(path)
        if verify:
            check_file(row, data)
        return decode_shard(spec, row, data)
    except Failed as error:
        raise Failed(f"{path}: {error}; run `onestep shards repair {root}`") from error


def check_file(row: ManifestRow, data: bytes) -> None:
    """Holds a shard's bytes against its row.

    Raises:
        Failed: another size or another sha256.
    """
    if len(data) != row.num_bytes:
        raise Failed(f"holds {len(data)} bytes where {row.num_bytes} were committed")
    if (digest := sha256_bytes(data)) != row.sha256:
        raise Failed(f"its sha256 is {digest} where {row.sha256} was committed")


def decode_shard(spec: PairSpec, row: ManifestRow, data: bytes) -> Pairs:
    """A shard's bytes -> its pairs.

    Raises:
        Failed: bytes that the writer would not have written for this row.
    """
    layout = layout_of(spec)
    if len(data) != layout.num_bytes(row.num_pairs):
        raise Failed(f"{row.num_pairs} pairs make {layout.num_bytes(row.num_pairs)} bytes, not {len(data)}")
    everything = np.frombuffer(data, dtype=np.uint8)
    num_sample_bytes = row.num_pairs * layout.stride
    rows = everything[:num_sample_bytes].reshape(row.num_pairs, layout.stride)
    index_B = np.arange(row.first_pair, row.first_pair + row.num_pairs, dtype=np.int64)
    try:
        label_B = read_labels(layout, rows)
    except ValueError as error:
        raise Failed("a label is not a number") from error
    misframed = misframed_rows(layout, rows, index_B, label_B)
    if len(misframed):
        raise Failed(f"the sample of pair {index_B[misframed[0]]} is not laid out as one of this data set")
    if everything[num_sample_bytes:].any():
        raise Failed("something follows its last sample")
    noise_BLC = _noise(spec, row, layout, rows)
    tokens_BL = _column(rows, layout.tokens.data, spec.token_dtype.newbyteorder("<"))
    return Pairs(index_B, noise_BLC, tokens_BL.astype(spec.token_dtype, copy=False), label_B)


def _noise(spec: PairSpec, row: ManifestRow, layout: Layout, rows: Array) -> Array:
    if spec.noise == "stored":
        return _column(rows, layout.noise.data, np.dtype("<f2")).reshape(row.num_pairs, *spec.noise_shape)
    noise_BLC = gaussian_noise(spec.seed, row.first_pair, row.num_pairs, spec.noise_shape)
    recorded = _column(rows, layout.noise.data, np.dtype("<u4"))[:, 0]
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
