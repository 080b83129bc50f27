"""A data set as a whole: founding it, the table of its shards read as one, and views cut out of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from shards.core.errors import Failed, Refused
from shards.core.mismatch import flat
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
    """Whether a data set was founded there."""
    return is_file(location(root) / DATASET_FILE)


def create_dataset(root: Location | str, spec: PairSpec) -> None:
    """Founds a pair data set, or confirms that the one that is there is the same.

    Raises:
        Refused: another data set is there; names every key that differs as `there -> asked`.
    """
    data = (json.dumps(spec.to_json(), indent=2, allow_nan=False) + "\n").encode()
    if not commit_bytes(location(root) / DATASET_FILE, data, exclusive=True):
        refuse_other_spec(root, spec)


def refuse_other_spec(root: Location | str, spec: PairSpec) -> None:
    """Confirms that the data set that is there has this spec, whatever its names; writes nothing.

    Raises:
        Refused: it has another one; names every key that differs as `there -> asked`.
    """
    there = flat(without_names(read_spec(root).to_json()))
    # Through JSON, so that a tuple is the list that was read back.
    wanted = flat(without_names(json.loads(json.dumps(spec.to_json()))))
    absent = object()
    differing = [
        f"{key}: {there.get(key, 'nothing')!r} -> {wanted.get(key, 'nothing')!r}"
        for key in sorted(there.keys() | wanted.keys())
        if key not in {"fingerprint", "sha256"} and there.get(key, absent) != wanted.get(key, absent)
    ]
    if differing:
        raise Refused(
            f"{location(root) / DATASET_FILE} describes other pairs (there -> asked): {'; '.join(differing)}. "
            "Ask for the same, or choose another folder"
        )


def read_spec(root: Location | str) -> PairSpec:
    """The spec in dataset.json.

    Raises:
        Refused: there is no data set, or dataset.json is not what tokenleap wrote.
    """
    path = location(root) / DATASET_FILE
    (data,) = read_each([path])
    if data is None:
        raise Refused(f"{root} is not a pair data set: it has no {DATASET_FILE}")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise Refused(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise Refused(f"{path} must hold a JSON object")
    try:
        return PairSpec.from_json(content)
    except Refused as error:
        raise Refused(f"{path}: {error}") from error


def committed_names(root: Location | str) -> list[str]:
    """Names of the shards that are done: those of the rows, and where rows have no folder, those in the joined table.

    Raises:
        Failed: the joined table is wanted and cannot be read.
    """
    root = location(root)
    names = row_names(root)
    if is_web(root) or (not names and not is_folder(root / ROW_FOLDER)):
        return list(read_joined(root))
    return names


@dataclass(frozen=True)
class View:
    """A run of pairs, `first` .. `first + size - 1`, cut out of whole shards.

    Attributes:
        first: pair_index of the first pair.
        size: number of pairs.
        spec: of the data set.
        rows: the shards that cover it, in order.
    """

    first: int
    size: int
    spec: PairSpec
    rows: tuple[ManifestRow, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many pairs of the view each of its shards holds."""
        stop = self.first + self.size
        return tuple(
            min(row.first_pair + row.num_pairs, stop) - max(row.first_pair, self.first) for row in self.rows
        )


@dataclass(frozen=True)
class Manifest:
    """All committed shards of a data set, by first_pair."""

    root: Location
    spec: PairSpec
    rows: tuple[ManifestRow, ...]

    @classmethod
    def open(cls, root: Location | str) -> Manifest:
        """Reads dataset.json and every row.

        The joined table saves opening rows one by one; where there is a folder of rows, that folder alone
        says which shards are done. A web server lists no folder: there the joined table says it.

        Raises:
            Refused: no data set there, none that can be read over the web, or a row of other pairs.
            Failed: a row that cannot be read, or does not stand where its name says.
        """
        root = location(root)
        spec = read_spec(root)
        joined = read_joined(root)
        if is_web(root) and not joined:
            raise Refused(
                f"{root} cannot be listed and has no {JOINED_FILE} that names its shards: "
                "`tokenleap shards join` makes one, where the pairs were made"
            )
        names = committed_names(root)
        single = read_rows(root, [name for name in names if name not in joined])
        found = (joined[name] if name in joined else next(single) for name in names)
        return cls(root, spec, _in_order(root, spec, found))

    @property
    def num_pairs(self) -> int:
        """Pairs in all committed shards, held out ones included."""
        return sum(row.num_pairs for row in self.rows)

    def missing(self, num_shards: int) -> tuple[int, ...]:
        """Which of the first `num_shards` shards are not there yet."""
        done = {row.shard for row in self.rows}
        return tuple(index for index in range(num_shards) if shard_name(index) not in done)

    @property
    def num_available(self) -> int:
        """Training pairs that a view can hold: those before the first missing shard."""
        return max(0, self._first_gap() - self.spec.num_heldout)

    def view(self, size: int | None = None) -> View:
        """The first `size` training pairs, all of them where `size` is None.

        Raises:
            Refused: there are fewer, or a shard in between is missing.
        """
        first = self.spec.num_heldout
        gap, available = self._first_gap(), self.num_available
        beyond = any(row.first_pair >= gap for row in self.rows)
        if size is None and beyond:
            missing = shard_name(gap // self.spec.pairs_per_shard)
            raise Refused(
                f"{self.root}: {missing} is not there though later shards are; "
                f"run the same `tokenleap generate ... --out {self.root}` again"
            )
        wanted = available if size is None else size
        if wanted < 1 or wanted > available:
            asked = "training pairs" if size is None else f"{size} training pairs"
            raise Refused(
                f"asked for {asked} of {self.root}, which holds {available} of them; "
                f"`tokenleap generate ... --out {self.root} --num-pairs {max(wanted, 1)}` would extend it"
            )
        return self._cut(first, wanted)

    def heldout(self) -> View:
        """The pairs kept out of every training.

        Raises:
            Refused: not all of them are there yet.
        """
        size = self.spec.num_heldout
        if self._first_gap() < size:
            raise Refused(
                f"{self.root} does not hold all of its {size} held out pairs yet; "
                f"run the same `tokenleap generate ... --out {self.root}` again"
            )
        return self._cut(0, size)

    def write_joined(self) -> Location:
        """Writes all rows into one file beside dataset.json; derived, deletable."""
        return write_joined(self.root, self.rows)

    def _first_gap(self) -> int:
        """The first pair_index that no committed shard holds."""
        position = 0
        for row in self.rows:
            if row.first_pair != position:
                break
            position += row.num_pairs
        return position

    def _cut(self, first: int, size: int) -> View:
        rows = (
            row
            for row in self.rows
            if row.first_pair < first + size and row.first_pair + row.num_pairs > first
        )
        return View(first, size, self.spec, tuple(rows))


def row_names(root: Location) -> list[str]:
    """The shards that have a row of their own, by the listing of the folder."""
    return [PurePath(name).stem for name in list_names(root / ROW_FOLDER, ".parquet")]


def join(root: Location | str) -> Manifest:
    """Reads every row by itself and writes them all into the joined table, in place of the one that is there.

    Any number of processes may do so at once, also while rows are taken back or replaced (`forget`,
    `replace_row`): they remove the table after their change, and here the rows are read once more after it is
    written, so that whoever comes last has seen the other's work. Rows that only came to it meanwhile are
    joined too, once: whoever makes them joins them again at the end.

    Returns:
        What was joined.

    Raises:
        Refused, Failed: as `Manifest.open`, or the place cannot be written to.
    """
    root = location(root)
    refuse_web(root, "write to")
    spec = read_spec(root)
    rows = _in_order(root, spec, read_rows(root, row_names(root)))
    grown = False
    while True:
        write_joined(root, rows)
        now = _in_order(root, spec, read_rows(root, row_names(root)))
        if now == rows or (grown and set(rows) <= set(now)):
            return Manifest(root, spec, rows)
        grown, rows = set(rows) <= set(now), now


def _in_order(root: Location, spec: PairSpec, found: Iterable[ManifestRow | None]) -> tuple[ManifestRow, ...]:
    """The rows that there are, by first_pair, each held against the spec. Raises as `Manifest.open`."""
    rows = sorted((row for row in found if row is not None), key=lambda row: row.first_pair)
    for row in rows:
        problem = row_problem(spec, row)
        if row.fingerprint != spec.fingerprint:
            raise Refused(f"{row_path(root, row.shard)}: {problem}")
        if problem:
            raise Failed(f"{row_path(root, row.shard)}: {problem}; run `tokenleap shards repair {root}`")
    return tuple(rows)
