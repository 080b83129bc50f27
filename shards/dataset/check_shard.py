"""Verification of one shard: its manifest row, its file, and its pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from shards.core.errors import Failed, Refused
from shards.dataset.captions import CAPTIONS_FILE
from shards.dataset.manifest_row import (
    JOINED_FILE,
    ManifestRow,
    read_row,
    row_path,
    row_problem,
    shard_path,
    table_problem,
)
from shards.dataset.reader import check_file, decode_shard
from shards.format.content_rules import broken_rules, wrong_noise
from shards.format.pairs import Pairs
from shards.format.spec import Array, PairSpec
from shards.storage.files import read_bytes, sha256_bytes
from shards.storage.paths import Location, is_web

_NO_DIGESTS = np.empty(0, dtype=np.uint64)


class Finding(NamedTuple):
    """One problem of a data set."""

    kind: str
    """One of: dataset (dataset.json unreadable or edited), missing (a gap in the sequence), row (unreadable or misplaced
    row), joined (the joined table differs from the rows), foreign (a row of other pairs), broken (file missing, short or
    changed), tokens, labels, noise (content that breaks its rule), captions (their list is missing or damaged, or a pair
    has a caption that is not its label's), duplicate (content of another shard or pair), uncommitted (a tar without a
    row, which the next writer replaces; no damage)."""
    where: str
    """The file."""
    message: str
    """What is wrong."""

    @property
    def affects_all_pairs(self) -> bool:
        """True if the pairs' common input is damaged. No shard can be regenerated until it is restored."""
        return self.kind == "dataset" or PurePath(self.where).name == CAPTIONS_FILE


class ShardCheck(NamedTuple):
    """The findings about one shard alone, and the data needed to compare it with the others."""

    findings: tuple[Finding, ...]
    row_sha256: str | None = None  # None without a valid row of this data set
    sha256: str | None = None  # of the file, None if it was not read
    first_pair: int = 0
    noise_B: Array = _NO_DIGESTS  # 64-bit digests of its pairs' stored noise, uint64; empty if it was not read
    wrong_noise_B: Array = _NO_DIGESTS  # which of these pairs have noise that differs from their counter's, bool


def check_shard(
    root: Location,
    spec: PairSpec,
    name: str,
    joined: ManifestRow | None,
    reads_content: bool = True,
    texts: Sequence[str] | None = None,
) -> ShardCheck:
    """Check a shard that has a row file and, with `reads_content`, its tar.

    `joined` is its row in the joined table, if the table contains it; `texts` are the captions of its pairs, None
    without captions or if their list cannot be read.
    """
    where = str(row_path(root, name))
    try:
        row = joined if is_web(root) else read_row(root, name)
    except (Refused, Failed) as error:
        return ShardCheck((Finding("row", where, str(error)),))
    if row is None:
        return ShardCheck((Finding("row", where, "the row was removed during the check"),))
    findings: list[Finding] = []
    if not is_web(root) and (problem := table_problem(row_path(root, name), [row])):
        findings.append(Finding("row", where, problem))
    if joined is not None and joined != row:
        message = f"its row of {name} differs from {where}; delete this table"
        findings.append(Finding("joined", str(root / JOINED_FILE), message))
    if problem := row_problem(spec, row):
        kind = "foreign" if row.fingerprint != spec.fingerprint else "row"
        return ShardCheck((*findings, Finding(kind, where, problem)))
    if not reads_content:
        return ShardCheck(tuple(findings), row.sha256)
    return _content_check(root, spec, row, findings, texts)


def _content_check(
    root: Location, spec: PairSpec, row: ManifestRow, findings: list[Finding], texts: Sequence[str] | None
) -> ShardCheck:
    path = shard_path(root, row.shard)
    sha256: str | None = None
    try:
        data = read_bytes(path)
        # Computed before any check fails: it identifies a file that is stored under another shard's name.
        sha256 = sha256_bytes(data)
        check_file(row, data)
        pairs = decode_shard(spec, row, data)
    except (Refused, Failed) as error:
        message = f"{error}; run `tokenleap shards repair {root}`"
        return ShardCheck((*findings, Finding("broken", str(path), message)), row.sha256, sha256)
    wrong_noise_B = wrong_noise(spec, pairs, complete=True)
    broken = [Finding(kind, str(path), problem) for kind, problem in broken_rules(spec, pairs, wrong_noise_B)]
    if texts is not None and pairs.text_B is not None:
        wrong_text = np.flatnonzero(pairs.text_B != np.array(texts, dtype=object))
        if len(wrong_text):
            first = pairs.index_B[wrong_text[0]]
            problem = f"{len(wrong_text)} pairs, the first of them {first}, hold a caption that is not their label's"
            broken.append(Finding("captions", str(path), problem))
    return ShardCheck(
        (*findings, *broken), row.sha256, sha256, row.first_pair, _noise_digests(spec, pairs), wrong_noise_B
    )


def _noise_digests(spec: PairSpec, pairs: Pairs) -> Array:
    """Digests (B,) uint64 of stored noise; empty if noise is not stored."""
    if spec.noise != "stored":
        return _NO_DIGESTS
    digests = b"".join(hashlib.blake2b(noise_LC, digest_size=8).digest() for noise_LC in pairs.noise_BLC)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
