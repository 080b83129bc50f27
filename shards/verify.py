"""What is missing, broken or foreign in a pair data set: looks at every byte and changes none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import Failed, Refused
from shards.locations import Location, is_web, location
from shards.manifest import DATASET_FILE, dataset_exists, read_spec
from shards.reader import read_shard
from shards.record import PairSpec
from shards.reporting import Report
from shards.rows import (
    JOINED_FILE,
    ROW_FOLDER,
    SHARD_FOLDER,
    ManifestRow,
    read_joined,
    read_row,
    row_path,
    row_problem,
    shard_index,
    shard_name,
    shard_path,
    table_problem,
)
from shards.rules import broken_rules
from shards.storage import is_folder, list_names


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: "dataset" (dataset.json unreadable or edited), "missing" (a gap in the sequence), "row"
            (unreadable or misplaced row), "joined" (the joined table says otherwise than the rows),
            "foreign" (a row of other pairs), "broken" (file missing, short or changed), "tokens", "labels",
            "noise" (content that breaks its rule), or "uncommitted" (a tar without a row, which the next
            writer replaces: no damage).
        where: path of the file.
        message: what is wrong, in words.
    """

    kind: str
    where: str
    message: str


def verify(root: Location | str, report: Report | None = None) -> list[Finding]:
    """Everything wrong with a data set, by shard.

    Args:
        root: the data set's folder.
        report: called with (shards looked at, shards in all, note).

    Raises:
        Refused: there is no data set at `root`.
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
        if (root / JOINED_FILE).is_file() and (
            problem := table_problem(root / JOINED_FILE, list(joined.values()))
        ):
            findings.append(Finding("joined", str(root / JOINED_FILE), f"{problem}; delete it"))
    except (Refused, Failed) as error:
        findings.append(Finding("joined", str(root / JOINED_FILE), str(error)))
    committed = {Path(name).stem for name in list_names(root / ROW_FOLDER, ".parquet")}
    if is_web(root):
        # Nothing can be listed there: the joined table is all that says which shards are done.
        committed = set(joined)
        if not joined and not findings:
            findings.append(
                Finding("joined", str(root / JOINED_FILE), "names no shard, and nothing can be listed")
            )
    tars = {Path(name).stem for name in list_names(root / SHARD_FOLDER, ".tar")}
    last = max((index for name in committed if (index := shard_index(name)) is not None), default=-1)
    expected = {shard_name(index) for index in range(last + 1)}
    names = sorted(expected | committed | tars | joined.keys())
    for done, name in enumerate(names, start=1):
        if name in committed:
            findings += _shard_findings(root, spec, name, joined.get(name))
        else:
            findings += _rowless_findings(root, name, name in joined, name in expected, name in tars)
        if report is not None:
            report(done, len(names), f"{len(findings)} found" if findings else "")
    return findings


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


def _shard_findings(
    root: Location, spec: PairSpec, name: str, joined: ManifestRow | None
) -> Iterator[Finding]:
    where = str(row_path(root, name))
    try:
        row = joined if is_web(root) else read_row(root, name)
    except (Refused, Failed) as error:
        yield Finding("row", where, str(error))
        return
    if row is None:
        yield Finding("row", where, "the row was taken away during the check")
        return
    if problem := table_problem(row_path(root, name), [row]):
        yield Finding("row", where, problem)
    if joined is not None and joined != row:
        yield Finding(
            "joined", str(root / JOINED_FILE), f"holds another row of {name} than {where}; delete it"
        )
    if problem := row_problem(spec, row):
        yield Finding("foreign" if row.fingerprint != spec.fingerprint else "row", where, problem)
        return
    yield from _content_findings(root, spec, row)


def _content_findings(root: Location, spec: PairSpec, row: ManifestRow) -> Iterator[Finding]:
    where = str(shard_path(root, row.shard))
    try:
        pairs = read_shard(root, spec, row, rules=False)
    except (Refused, Failed) as error:
        yield Finding("broken", where, str(error))
        return
    for kind, message in broken_rules(spec, pairs, whole_noise=True):
        yield Finding(kind, where, message)
