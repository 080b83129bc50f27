"""What is wrong with one shard: its row, its file, and the pairs in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

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


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: "dataset" (dataset.json unreadable or edited), "missing" (a gap in the sequence), "row"
            (unreadable or misplaced row), "joined" (the joined table says otherwise than the rows),
            "foreign" (a row of other pairs), "broken" (file missing, short or changed), "tokens", "labels",
            "noise" (content that breaks its rule), "captions" (their list is missing or damaged, or a pair holds
            another than its label's), "duplicate" (what belongs to another shard or pair), or
            "uncommitted" (a tar without a row, which the next writer replaces: no damage).
        where: path of the file.
        message: what is wrong, in words.
    """

    kind: str
    where: str
    message: str

    @property
    def is_of_every_pair(self) -> bool:
        """Whether it is of what pairs are made from, so that no shard can be made again before it is put back."""
        return self.kind == "dataset" or PurePath(self.where).name == CAPTIONS_FILE


@dataclass(frozen=True)
class ShardCheck:
    """What looking at one shard came to, and what only a comparison with the others can judge.

    Attributes:
        findings: of the shard by itself.
        row_sha256: what its row says, None where no row of this data set stands.
        sha256: of the file as it lies there, None where it was not read.
        first_pair: pair_index of its first pair.
        noise_B: 64-bit digests of the stored noise of its pairs, uint64; empty where there is none to compare.
        foreign_B: which of these pairs hold noise that their counter does not give, bool.
    """

    findings: tuple[Finding, ...]
    row_sha256: str | None = None
    sha256: str | None = None
    first_pair: int = 0
    noise_B: Array = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    foreign_B: Array = field(default_factory=lambda: np.empty(0, dtype=np.bool_))


def check_shard(
    root: Location,
    spec: PairSpec,
    name: str,
    joined: ManifestRow | None,
    reads_content: bool = True,
    texts: Sequence[str] | None = None,
) -> ShardCheck:
    """Looks at a shard that has a row of its own.

    Args:
        root: the data set's folder.
        spec: its spec.
        name: the stem of the shard's files.
        joined: its row in the joined table, None where that has none.
        reads_content: whether to read the tar, too, or the row alone.
        texts: the captions of its pairs' labels; None where there are none, or nobody knows them.
    """
    where = str(row_path(root, name))
    try:
        row = joined if is_web(root) else read_row(root, name)
    except (Refused, Failed) as error:
        return ShardCheck((Finding("row", where, str(error)),))
    if row is None:
        return ShardCheck((Finding("row", where, "the row was taken away during the check"),))
    findings: list[Finding] = []
    if not is_web(root) and (problem := table_problem(row_path(root, name), [row])):
        findings.append(Finding("row", where, problem))
    if joined is not None and joined != row:
        message = f"holds another row of {name} than {where}; delete it"
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
        # Taken before anything is judged: a file in another's place is told by it.
        sha256 = sha256_bytes(data)
        check_file(row, data)
        pairs = decode_shard(spec, row, data)
    except (Refused, Failed) as error:
        message = f"{error}; run `tokenleap shards repair {root}`"
        return ShardCheck((*findings, Finding("broken", str(path), message)), row.sha256, sha256)
    foreign_B = wrong_noise(spec, pairs, whole=True)
    broken = [Finding(kind, str(path), problem) for kind, problem in broken_rules(spec, pairs, foreign_B)]
    if texts is not None and pairs.text_B is not None:
        others = np.flatnonzero(pairs.text_B != np.array(texts, dtype=object))
        if len(others):
            first = pairs.index_B[others[0]]
            problem = (
                f"{len(others)} pairs, the first of them {first}, hold a caption that is not their label's"
            )
            broken.append(Finding("captions", str(path), problem))
    return ShardCheck(
        (*findings, *broken), row.sha256, sha256, row.first_pair, _noise_digests(spec, pairs), foreign_B
    )


def _noise_digests(spec: PairSpec, pairs: Pairs) -> Array:
    """Digests (B,) uint64 of the noise as it is stored; none where none is."""
    if spec.noise != "stored":
        return np.empty(0, dtype=np.uint64)
    digests = b"".join(hashlib.blake2b(noise_LC, digest_size=8).digest() for noise_LC in pairs.noise_BLC)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
