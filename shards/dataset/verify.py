"""Verification of a pair data set: reads every byte, changes nothing, and reports all problems."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from shards.core.callbacks import Report
from shards.core.errors import Failed, Refused
from shards.dataset.captions import CAPTIONS_FILE, load_captions
from shards.dataset.check_shard import Finding, ShardCheck, check_shard
from shards.dataset.manifest import DATASET_FILE, dataset_exists, read_spec, row_names
from shards.dataset.manifest_row import (
    JOINED_FILE,
    SHARD_FOLDER,
    ManifestRow,
    read_joined,
    row_path,
    shard_index,
    shard_name,
    shard_path,
    table_problem,
)
from shards.format.pairs import label
from shards.format.spec import PairSpec
from shards.storage.files import is_folder, list_names
from shards.storage.paths import Location, is_web, location

__all__ = ["Finding", "Sample", "verify"]

SHARDS_PER_PROCESS = 4
"""Starting a process takes as long as reading a few shards: each process must have at least this many."""


@dataclass(frozen=True)
class Sample:
    """A random choice of shards. The same seed and the same shards give the same choice."""

    num_shards: int
    seed: int

    def of(self, names: Sequence[str]) -> frozenset[str]:
        """The chosen names; all if there are at most `num_shards`."""
        drawn = sorted(names, key=lambda name: hashlib.sha256(f"{self.seed} {name}".encode()).digest())
        return frozenset(drawn[: self.num_shards])


def verify(
    root: Location | str, report: Report | None = None, *, workers: int = 0, sample: Sample | None = None
) -> list[Finding]:
    """Find everything that is wrong with a data set: first by shard, then content that several shards share.

    Args:
        root: the data set.
        report: called with (shards done, shards in total, note).
        workers: processes that check shards; 0 checks in this one. The findings and their order do not depend on it.
        sample: read only these shards; every row is still checked.

    Returns:
        The findings; none if the data set is intact.

    Raises:
        Refused: there is no data set at `root`.
        Failed: a worker process was killed.
    """
    root = location(root)
    if not (dataset_exists(root) if is_web(root) else is_folder(root)):
        raise Refused(f"{root} is not a pair data set: there is no such folder")
    try:
        spec = read_spec(root)
    except (Refused, Failed) as error:
        return [Finding("dataset", str(root / DATASET_FILE), str(error))]
    joined, findings = _check_joined(root)
    captions, caption_findings = _check_captions(root, spec)
    findings += caption_findings
    if is_web(root) and not joined and not findings:
        message = "it names no shard, and a web server lists no files"
        findings.append(Finding("joined", str(root / JOINED_FILE), message))
    # A web server lists no files: there the joined table alone names the committed shards.
    committed = sorted(joined) if is_web(root) else row_names(root)
    tars = {PurePath(name).stem for name in list_names(root / SHARD_FOLDER, ".tar")}
    last = max((index for name in committed if (index := shard_index(name)) is not None), default=-1)
    expected = {shard_name(index) for index in range(last + 1)}
    names = sorted({*expected, *committed, *tars, *joined})
    read = frozenset(committed) if sample is None else sample.of(committed)
    calls = [(root, spec, name, joined.get(name), name in read, _texts_of(spec, name, captions)) for name in committed]
    results = zip(committed, _checks(calls, workers), strict=True)
    checks: dict[str, ShardCheck] = {}
    with_row = frozenset(committed)
    for done, name in enumerate(names, start=1):
        if name in with_row:
            checks.update([next(results)])
            findings += checks[name].findings
        else:
            findings += _rowless_findings(root, name, name in joined, name in expected, name in tars)
        if report is not None:
            report(done, len(names), f"{len(findings)} found" if findings else "")
    return [*findings, *_same_bytes(root, checks), *_same_noise(root, checks)]


def _check_joined(root: Location) -> tuple[dict[str, ManifestRow], list[Finding]]:
    """The rows of the joined table by shard, and the findings about the table."""
    path = root / JOINED_FILE
    joined: dict[str, ManifestRow] = {}
    try:
        joined = read_joined(root)
        problem = table_problem(path, list(joined.values())) if joined else None
    except (Refused, Failed) as error:
        return joined, [Finding("joined", str(path), str(error))]
    return joined, [Finding("joined", str(path), f"{problem}; delete it")] if problem else []


def _check_captions(root: Location, spec: PairSpec) -> tuple[list[str] | None, list[Finding]]:
    """The data set's captions, None if it has none or they cannot be read, and the findings about their list."""
    if spec.captions is None:
        return None, []
    try:
        return load_captions(root, spec), []
    except (Refused, Failed) as error:
        return None, [Finding("captions", str(root / CAPTIONS_FILE), str(error))]


def _texts_of(spec: PairSpec, name: str, captions: Sequence[str] | None) -> list[str] | None:
    """The captions that belong to the labels of a shard's pairs."""
    index = shard_index(name)
    if captions is None or index is None:
        return None
    first_pair = index * spec.pairs_per_shard
    return [captions[label(first_pair + place, len(captions))] for place in range(spec.pairs_per_shard)]


def _checks(
    calls: Sequence[tuple[Location, PairSpec, str, ManifestRow | None, bool, list[str] | None]], workers: int
) -> Iterator[ShardCheck]:
    """Results of `check_shard` for all calls, in order, computed in up to `workers` processes."""
    workers = min(workers, len(calls) // SHARDS_PER_PROCESS)
    if workers < 2:
        for call in calls:
            yield check_shard(*call)
        return
    # Not forked: a forked child of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield from executor.map(check_shard, *zip(*calls, strict=True))
    except BrokenProcessPool as error:
        raise Failed(
            "a process that checks shards was killed, perhaps because memory ran out; "
            "use --workers 0 to check without such processes"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _rowless_findings(root: Location, name: str, in_joined: bool, expected: bool, has_tar: bool) -> Iterator[Finding]:
    """Findings about a shard without a row file."""
    if in_joined:
        yield Finding("joined", str(root / JOINED_FILE), f"it contains {name}, which has no row file; delete this table")
    if expected:
        yield Finding("missing", str(row_path(root, name)), "this shard has no row, but later shards have one")
    if has_tar:
        message = "this file has no row: its writer was killed or is still running"
        yield Finding("uncommitted", str(shard_path(root, name)), message)


def _same_bytes(root: Location, checks: dict[str, ShardCheck]) -> Iterator[Finding]:
    """Shards whose row or file has the hash of another shard: as names are part of the bytes, all must differ."""
    # Shards without findings come first: they are the rightful owners of their bytes.
    names = sorted(checks, key=lambda name: (len(checks[name].findings) > 0, name))
    for path_of, attribute, message in (
        (row_path, "row_sha256", "it has the sha256 of {}"),
        (shard_path, "sha256", "it has the bytes of {}"),
    ):
        first: dict[str, str] = {}
        for name in names:
            digest = getattr(checks[name], attribute)
            if digest is not None and first.setdefault(digest, name) != name:
                duplicate_of = path_of(root, first[digest])
                yield Finding("duplicate", str(path_of(root, name)), message.format(duplicate_of))


def _same_noise(root: Location, checks: dict[str, ShardCheck]) -> Iterator[Finding]:
    """Pairs with the noise of another pair, if that noise is wrong for at least one of the two.

    Two pairs that both match their counters can have equal noise by chance, if a pair has very few numbers.
    """
    if not checks:
        return
    noise_N = np.concatenate([check.noise_B for check in checks.values()])
    index_N = np.concatenate([check.first_pair + np.arange(len(check.noise_B)) for check in checks.values()])
    by_noise = np.argsort(noise_N, kind="stable")
    sorted_noise_N, sorted_index_N = noise_N[by_noise], index_N[by_noise]
    for name, check in checks.items():
        wrong = np.flatnonzero(check.wrong_noise_B)
        starts = np.searchsorted(sorted_noise_N, check.noise_B[wrong], side="left")
        ends = np.searchsorted(sorted_noise_N, check.noise_B[wrong], side="right")
        duplicates = [
            (check.first_pair + int(pair), others)
            for pair, start, end in zip(wrong, starts, ends, strict=True)
            if len(others := sorted_index_N[start:end][sorted_index_N[start:end] != check.first_pair + pair])
        ]
        if duplicates:
            first, others = duplicates[0]
            message = f"{len(duplicates)} pairs hold the noise of another, the first of them {first} that of {others[0]}"
            yield Finding("duplicate", str(shard_path(root, name)), message)
