"""A data set as a whole: its creation, the manifest of its shards, and views of its pairs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from shards.core.errors import Failed, Refused, join_first
from shards.core.mismatch import format_mismatch, mismatches
from shards.dataset.manifest_row import (
    JOINED_FILE,
    ROW_FOLDER,
    ManifestRow,
    read_joined,
    read_rows,
    row_path,
    row_problem,
    shard_name,
    write_joined,
)
from shards.format.spec import PairSpec, without_names
from shards.storage.files import commit_bytes, is_file, is_folder, list_names, read_each
from shards.storage.paths import Location, is_web, location, refuse_web

DATASET_FILE = "dataset.json"


def dataset_exists(root: Location | str) -> bool:
    """True if this folder contains a data set."""
    return is_file(location(root) / DATASET_FILE)


def create_dataset(root: Location | str, spec: PairSpec) -> None:
    """Create a pair data set, or check that the existing one has the same spec.

    Args:
        root: a folder or a URL.
        spec: what its pairs have in common.

    Raises:
        Refused: the existing data set has another spec; names every key that differs.
    """
    data = (json.dumps(spec.to_json(), indent=2, allow_nan=False) + "\n").encode()
    if not commit_bytes(location(root) / DATASET_FILE, data, exclusive=True):
        refuse_other_spec(root, spec)


def refuse_other_spec(root: Location | str, spec: PairSpec) -> None:
    """Raise `Refused`, naming every key that differs, unless the existing data set has this spec, apart from names."""
    found = without_names(read_spec(root).to_json())
    # A round trip through JSON converts tuples to lists, as in the stored spec.
    requested = without_names(json.loads(json.dumps(spec.to_json())))
    differing = [one for one in mismatches(found, requested) if one.key not in {"fingerprint", "sha256"}]
    if differing:
        raise Refused(
            f"{location(root) / DATASET_FILE} describes other pairs: "
            f"{join_first([*map(format_mismatch, differing)])}. Use the stored values, or choose another folder"
        )


def read_spec(root: Location | str) -> PairSpec:
    """Read the spec in dataset.json. Raises `Refused` if it is missing, or not as tokenleap wrote it."""
    path = location(root) / DATASET_FILE
    (data,) = read_each([path])
    if data is None:
        raise Refused(f"{root} is not a pair data set: it has no {DATASET_FILE}")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise Refused(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise Refused(f"{path} must contain a JSON object")
    try:
        return PairSpec.from_json(content)
    except Refused as error:
        raise Refused(f"{path}: {error}") from error


def committed_names(root: Location | str) -> list[str]:
    """Names of the committed shards: from the row files or, without a folder of rows, from the joined table."""
    root = location(root)
    names = row_names(root)
    if is_web(root) or (not names and not is_folder(root / ROW_FOLDER)):
        return list(read_joined(root))
    return names


@dataclass(frozen=True)
class View:
    """The consecutive pairs `first` .. `first + size - 1`, which may start and end within a shard."""

    first: int
    size: int
    spec: PairSpec
    rows: tuple[ManifestRow, ...]  #: of the shards that contain these pairs, in order

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of the view's pairs in each of its shards."""
        stop = self.first + self.size
        return tuple(min(row.first_pair + row.num_pairs, stop) - max(row.first_pair, self.first) for row in self.rows)


@dataclass(frozen=True)
class Manifest:
    """All committed shards of a data set, by first_pair."""

    root: Location
    spec: PairSpec
    rows: tuple[ManifestRow, ...]

    @classmethod
    def open(cls, root: Location | str) -> Manifest:
        """Read dataset.json and every row.

        The joined table makes it unnecessary to open rows one by one. If there is a folder of rows, that folder alone
        determines which shards are committed; on a web server, which lists no files, the joined table does.

        Raises:
            Refused: there is no data set, it cannot be read over the web, or a row belongs to other pairs.
            Failed: a row cannot be read, or is stored under another shard's name.
        """
        root = location(root)
        spec = read_spec(root)
        joined = read_joined(root)
        if is_web(root) and not joined:
            raise Refused(
                f"{root} cannot be listed and has no {JOINED_FILE} that names its shards: "
                "create one with `tokenleap shards join` where the pairs are stored"
            )
        names = committed_names(root)
        single = read_rows(root, [name for name in names if name not in joined])
        rows = (joined[name] if name in joined else next(single) for name in names)
        return cls(root, spec, _checked_rows(root, spec, rows))

    @property
    def num_pairs(self) -> int:
        """Number of pairs in all committed shards, including held-out pairs."""
        return sum(row.num_pairs for row in self.rows)

    def missing(self, num_shards: int) -> tuple[int, ...]:
        """Indices of the shards among the first `num_shards` that are not committed yet."""
        committed = {row.shard for row in self.rows}
        return tuple(index for index in range(num_shards) if shard_name(index) not in committed)

    @property
    def num_available(self) -> int:
        """Number of training pairs before the first missing shard, which a view can contain."""
        return max(0, self._first_gap() - self.spec.num_heldout)

    def view(self, size: int | None = None) -> View:
        """The first `size` training pairs, or all. Raises `Refused` if there are fewer or an earlier shard is missing."""
        gap, available = self._first_gap(), self.num_available
        if size is None and any(row.first_pair >= gap for row in self.rows):
            missing = shard_name(gap // self.spec.pairs_per_shard)
            raise Refused(
                f"{self.root}: {missing} is missing, but later shards exist; "
                f"run the same `tokenleap generate ... --out {self.root}` again"
            )
        if size is not None and size < 1:
            raise Refused(f"{size} training pairs were requested from {self.root}: give at least 1")
        requested = available if size is None else size
        if requested < 1 or requested > available:
            raise Refused(
                f"{self.root} has {available} training pairs, but {size or 'at least 1'} are needed; "
                f"extend it with `tokenleap generate ... --out {self.root} --num-pairs {max(requested, 1)}`"
            )
        return self._cut(self.spec.num_heldout, requested)

    def heldout(self) -> View:
        """The held-out pairs, which training never uses. Raises `Refused` if they are not all committed yet."""
        size = self.spec.num_heldout
        if self._first_gap() < size:
            raise Refused(
                f"{self.root} does not contain all of its {size} held-out pairs yet; "
                f"run the same `tokenleap generate ... --out {self.root}` again"
            )
        return self._cut(0, size)

    def write_joined(self) -> Location:
        """Write all rows to one file next to dataset.json. It is derived data and may be deleted."""
        return write_joined(self.root, self.rows)

    def _first_gap(self) -> int:
        """The first pair_index that is in no committed shard."""
        shard = next((number for number, row in enumerate(self.rows) if row.shard != shard_name(number)), len(self.rows))
        return shard * self.spec.pairs_per_shard

    def _cut(self, first: int, size: int) -> View:
        rows = (row for row in self.rows if row.first_pair < first + size and row.first_pair + row.num_pairs > first)
        return View(first, size, self.spec, tuple(rows))


def row_names(root: Location) -> list[str]:
    """Sorted names of the shards that have a row file."""
    return [PurePath(name).stem for name in list_names(root / ROW_FOLDER, ".parquet")]


def join(root: Location | str) -> Manifest:
    """Read every row file and write all rows to the joined table, replacing an existing table.

    This is safe while other processes join, remove or replace rows: `remove_row` and `replace_row` delete the table
    after their change, and here all rows are read once more after the table was written. If rows were only added
    meanwhile, the table is rewritten once; the process that adds rows joins them itself at its end.

    Returns the manifest whose rows were written. Raises as `Manifest.open`, or if the location is not writable.
    """
    root = location(root)
    refuse_web(root, "write to")
    spec = read_spec(root)
    rows = _checked_rows(root, spec, read_rows(root, row_names(root)))
    grown = False
    while True:
        write_joined(root, rows)
        now = _checked_rows(root, spec, read_rows(root, row_names(root)))
        if now == rows or (grown and set(rows) <= set(now)):
            return Manifest(root, spec, rows)
        grown, rows = set(rows) <= set(now), now


def _checked_rows(root: Location, spec: PairSpec, rows: Iterable[ManifestRow | None]) -> tuple[ManifestRow, ...]:
    """The rows that are not None, sorted by first_pair and checked against the spec. Raises as `Manifest.open`."""
    committed = sorted((row for row in rows if row is not None), key=lambda row: row.first_pair)
    for row in committed:
        problem = row_problem(spec, row)
        if row.fingerprint != spec.fingerprint:
            raise Refused(f"{row_path(root, row.shard)}: {problem}")
        if problem:
            raise Failed(f"{row_path(root, row.shard)}: {problem}; run `tokenleap shards repair {root}`")
    return tuple(committed)
