"""One committed shard -> pairs: read once, held against its row, taken apart as a matrix, a sample a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from shards.core.errors import Failed
from shards.dataset.manifest import View
from shards.dataset.manifest_row import ManifestRow, shard_path
from shards.format.caption_members import first_blocks, read_texts, sample_rows
from shards.format.content_rules import broken_rules, wrong_noise
from shards.format.noise import gaussian_noise
from shards.format.pairs import Pairs, checksum
from shards.format.spec import Array, PairSpec
from shards.format.tar_layout import BLOCK, layout_of, misframed_rows, read_labels
from shards.storage.files import read_bytes, sha256_bytes, xxh3_bytes
from shards.storage.paths import Location


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
            for _, problem in broken_rules(spec, pairs, wrong_noise(spec, pairs, whole=False)):
                raise Failed(problem)
        return pairs


@contextmanager
def repairable(root: object, path: object) -> Iterator[None]:
    """Says of a `Failed` in the block which shard it is about, and what would mend it."""
    try:
        yield
    except Failed as error:
        raise Failed(f"{path}: {error}; run `tokenleap shards repair {root}`") from error


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
    samples = framed_samples(spec, row, np.frombuffer(data, dtype=np.uint8))
    made_again = None if spec.noise == "stored" else regenerated_noise(spec, row, samples.rows)
    pairs = pairs_in_place(spec, row, samples, made_again)
    # Copied out, so that the rest of the file can go.
    noise_BLC = np.ascontiguousarray(pairs.noise_BLC) if made_again is None else made_again
    return replace(
        pairs, noise_BLC=noise_BLC, tokens_BL=np.ascontiguousarray(pairs.tokens_BL, spec.token_dtype)
    )


@dataclass(frozen=True)
class FramedSamples:
    """A shard's bytes taken apart, once all that frames its payloads is what the writer puts there.

    Attributes:
        rows: (B, stride) uint8, a sample a row, without its caption.
        label_B: int64.
        text_B: captions, str as objects; None where labels are classes.
        blocks: the block of the file at which each sample begins, and the one after the last, (B + 1,) int64.
    """

    rows: Array
    label_B: Array
    text_B: Array | None
    blocks: Array


def framed_samples(spec: PairSpec, row: ManifestRow, data: Array) -> FramedSamples:
    """A shard's bytes, taken apart.

    Args:
        spec: the data set's spec.
        row: the shard's row in the manifest.
        data: uint8, the whole file.

    Raises:
        Failed: bytes that the writer would not have written for this row.
    """
    layout = layout_of(spec)
    blocks = first_blocks(spec, data, row.num_pairs)
    rows = sample_rows(layout, data, blocks)
    try:
        label_B = read_labels(layout, rows)
    except ValueError as error:
        raise Failed("a label is not a number") from error
    index_B = np.arange(row.first_pair, row.first_pair + row.num_pairs, dtype=np.int64)
    misframed = misframed_rows(layout, rows, index_B, label_B)
    if len(misframed):
        raise Failed(f"the sample of pair {index_B[misframed[0]]} is not laid out as one of this data set")
    text_B = None if spec.captions is None else read_texts(layout, data, blocks, index_B)
    if data[int(blocks[-1]) * BLOCK :].any():
        raise Failed("something follows its last sample")
    return FramedSamples(rows, label_B, text_B, blocks)


def pairs_in_place(
    spec: PairSpec, row: ManifestRow, samples: FramedSamples, made_again_BLC: Array | None
) -> Pairs:
    """A shard's pairs where they lie in its bytes, nothing copied; of noise that is not there, what was made again."""
    rows, layout = samples.rows, layout_of(spec)
    if made_again_BLC is None:
        noise_BN = rows[:, layout.noise.data].view("<f2")
        noise_BLC = noise_BN.reshape(len(rows), *spec.noise_shape)
    else:
        noise_BLC = made_again_BLC
    return Pairs(
        np.arange(row.first_pair, row.first_pair + row.num_pairs, dtype=np.int64),
        noise_BLC,
        rows[:, layout.tokens.data].view(spec.token_dtype.newbyteorder("<")),
        samples.label_B,
        samples.text_B,
    )


def regenerated_noise(spec: PairSpec, row: ManifestRow, rows: Array) -> Array:
    """Noise (B, L, C) float16 of a shard that keeps only its checksums.

    Raises:
        Failed: the arithmetic of this platform gives other noise than was mapped.
    """
    noise_BLC = gaussian_noise(spec.seed, row.first_pair, row.num_pairs, spec.noise_shape)
    recorded = rows[:, layout_of(spec).noise.data].view("<u4")[:, 0]
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


def pairs_of(root: Location, view: View) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (B, L) and labels (B,) of a view's pairs, int64, a shard at a time, in order."""
    for row in view.rows:
        pairs = read_shard(root, view.spec, row)
        kept = pairs.take((pairs.index_B >= view.first) & (pairs.index_B < view.first + view.size))
        yield torch.from_numpy(kept.tokens_BL.astype("int64")), torch.from_numpy(kept.label_B)
