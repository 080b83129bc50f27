"""What is missing, broken, foreign or there twice in a pair data set: looks at every byte and changes none."""

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
"""A process takes as long to start as a few shards to read: for fewer of them none is started."""


@dataclass(frozen=True)
class Sample:
    """A few shards in the place of all: the same ones for the same seed and the same shards.

    Attributes:
        num_shards: how many.
        seed: which.
    """

    num_shards: int
    seed: int

    def of(self, names: Sequence[str]) -> frozenset[str]:
        """The names drawn, all of them where there are no more."""
        drawn = sorted(names, key=lambda name: hashlib.sha256(f"{self.seed} {name}".encode()).digest())
        return frozenset(drawn[: self.num_shards])


def verify(
    root: Location | str, report: Report | None = None, *, workers: int = 0, sample: Sample | None = None
) -> list[Finding]:
    """Everything wrong with a data set, by shard; then what shards wrongly have in common.

    Args:
        root: the data set's folder.
        report: called with (shards looked at, shards in all, note).
        workers: processes that look; 0 looks in this one. The findings are the same, in the same order.
        sample: read these shards alone; every row is still looked at.

    Raises:
        Refused: there is no data set at `root`.
        Failed: a process that looked was killed.
    """
    root = location(root)
    if not (dataset_exists(root) if is_web(root) else is_folder(root)):
        raise Refused(f"{root} is not a pair data set: there is no such folder")
    try:
        spec = read_spec(root)
    except (Refused, Failed) as error:
        return [Finding("dataset", str(root / DATASET_FILE), str(error))]
    findings: list[Finding] = []
    joined: dict[str, ManifestRow] = {}
    try:
        joined = read_joined(root)
        if joined and (problem := table_problem(root / JOINED_FILE, list(joined.values()))):
            findings.append(Finding("joined", str(root / JOINED_FILE), f"{problem}; delete it"))
    except (Refused, Failed) as error:
        findings.append(Finding("joined", str(root / JOINED_FILE), str(error)))
    captions: Sequence[str] | None = None
    if spec.captions is not None:
        try:
            captions = load_captions(root, spec)
        except (Refused, Failed) as error:
            findings.append(Finding("captions", str(root / CAPTIONS_FILE), str(error)))
    if is_web(root) and not joined and not findings:
        findings.append(
            Finding("joined", str(root / JOINED_FILE), "names no shard, and nothing can be listed")
        )
    # Nothing can be listed on the web: there the joined table is all that says which shards are done.
    committed = list(joined) if is_web(root) else row_names(root)
    tars = {PurePath(name).stem for name in list_names(root / SHARD_FOLDER, ".tar")}
    last = max((index for name in committed if (index := shard_index(name)) is not None), default=-1)
    expected = {shard_name(index) for index in range(last + 1)}
    names = sorted({*expected, *committed, *tars, *joined})
    read = frozenset(committed) if sample is None else sample.of(committed)
    calls = [
        (root, spec, name, joined.get(name), name in read, _texts_of(spec, name, captions))
        for name in sorted(committed)
    ]
    looking = _checks(calls, workers)
    checks: dict[str, ShardCheck] = {}
    with_row = frozenset(committed)
    for done, name in enumerate(names, start=1):
        if name in with_row:
            checks[name] = next(looking)
            findings += checks[name].findings
        else:
            findings += _rowless_findings(root, name, name in joined, name in expected, name in tars)
        if report is not None:
            report(done, len(names), f"{len(findings)} found" if findings else "")
    return [*findings, *_same_bytes(root, checks), *_same_noise(root, checks)]


def _texts_of(spec: PairSpec, name: str, captions: Sequence[str] | None) -> list[str] | None:
    """The captions of a shard's pairs, as their labels have them."""
    index = shard_index(name)
    if captions is None or index is None:
        return None
    first_pair = index * spec.pairs_per_shard
    return [captions[label(first_pair + place, len(captions))] for place in range(spec.pairs_per_shard)]


def _checks(
    calls: Sequence[tuple[Location, PairSpec, str, ManifestRow | None, bool, list[str] | None]], workers: int
) -> Iterator[ShardCheck]:
    """`check_shard` of every call, in their order, on as many processes as pay for themselves."""
    workers = min(workers, len(calls) // SHARDS_PER_PROCESS)
    if workers < 2:
        for call in calls:
            yield check_shard(*call)
        return
    # Spawned: a forked child of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield from executor.map(check_shard, *zip(*calls, strict=True))
    except BrokenProcessPool as error:
        raise Failed(
            "a process that looked at shards was killed, perhaps for want of memory; "
            "--workers 0 does without such processes"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _rowless_findings(
    root: Location, name: str, in_joined: bool, expected: bool, has_tar: bool
) -> Iterator[Finding]:
    """What there is to say of a shard that has no row of its own."""
    if in_joined:
        yield Finding(
            "joined", str(root / JOINED_FILE), f"holds {name}, which has no row of its own; delete it"
        )
    if expected:
        message = "there is no row of this shard though there are rows of later ones"
        yield Finding("missing", str(row_path(root, name)), message)
    if has_tar:
        message = "no row stands for this file: its writer was killed, or is still at work"
        yield Finding("uncommitted", str(shard_path(root, name)), message)


def _same_bytes(root: Location, checks: dict[str, ShardCheck]) -> Iterator[Finding]:
    """Shards whose rows, or whose files, are those of another: names lie in the bytes, so none may be."""
    # What is whole by itself holds what is its own.
    names = sorted(checks, key=lambda name: (len(checks[name].findings) > 0, name))
    for place, attribute, what in (
        (row_path, "row_sha256", "claims the bytes that {} claims"),
        (shard_path, "sha256", "holds the bytes of {}"),
    ):
        first: dict[str, str] = {}
        for name in names:
            digest = getattr(checks[name], attribute)
            if digest is not None and first.setdefault(digest, name) != name:
                yield Finding("duplicate", str(place(root, name)), what.format(place(root, first[digest])))


def _same_noise(root: Location, checks: dict[str, ShardCheck]) -> Iterator[Finding]:
    """Pairs that hold the noise of another pair, where one of the two is not its counter's.

    Two that are both their counter's can be equal by chance alone, where there are very few numbers in a pair.
    """
    noise_N = np.concatenate([np.empty(0, dtype=np.uint64), *(check.noise_B for check in checks.values())])
    index_N = np.concatenate(
        [
            np.empty(0, dtype=np.int64),
            *(check.first_pair + np.arange(len(check.noise_B)) for check in checks.values()),
        ]
    )
    by_noise = np.argsort(noise_N, kind="stable")
    sorted_noise_N, sorted_index_N = noise_N[by_noise], index_N[by_noise]
    for name, check in checks.items():
        foreign = np.flatnonzero(check.foreign_B)
        starts = np.searchsorted(sorted_noise_N, check.noise_B[foreign], side="left")
        ends = np.searchsorted(sorted_noise_N, check.noise_B[foreign], side="right")
        twice = [
            (check.first_pair + int(pair), others)
            for pair, start, end in zip(foreign, starts, ends, strict=True)
            if len(others := sorted_index_N[start:end][sorted_index_N[start:end] != check.first_pair + pair])
        ]
        if twice:
            pair_index, others = twice[0]
            message = f"{len(twice)} pairs hold the noise of another, the first of them {pair_index} that of {others[0]}"
            yield Finding("duplicate", str(shard_path(root, name)), message)
