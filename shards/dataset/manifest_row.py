"""One Parquet row a shard, committed after its tar: the only mark that the shard is done.

pyarrow is imported where it is used: it would double the time that `--help` takes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from shards.core.errors import Failed
from shards.format.spec import PairSpec
from shards.storage.files import commit_bytes, read_bytes, read_each, remove
from shards.storage.parquet import read_parquet
from shards.storage.paths import Location, location

JOINED_FILE = "manifest.parquet"
ROW_FOLDER = "manifest"
SHARD_FOLDER = "shards"
_WRITER = re.compile(r"parquet-cpp-arrow version \d+\.\d+\.\d+[-.\w]*")
_COLUMNS = {
    "shard": "string",
    "first_pair": "int64",
    "num_pairs": "int64",
    "num_bytes": "int64",
    "sha256": "string",
    "fingerprint": "string",
    "seconds": "float64",
    "host": "string",
    "device": "string",
    "batch_size": "int64",
    "versions": "string",
    "xxh3_128": "string",
}
_LATER = {"xxh3_128"}
"""Columns that tables of earlier versions do not have."""


@dataclass(frozen=True)
class ManifestRow:
    """One committed shard: what it holds, what its file must be, and how it came about.

    Attributes:
        shard: the stem of its file, `pairs-000000`.
        first_pair: pair_index of its first pair.
        num_pairs: pairs in it.
        num_bytes: size of the tar.
        sha256: of the tar (hex).
        fingerprint: of the data set it belongs to.
        seconds: wall time of making it.
        host: machine that made it.
        device: kind of device that made it.
        batch_size: pairs mapped at a time.
        versions: software it was made with, in words.
        xxh3_128: of the tar (hex): tells chance damage as sha256 does, many times as fast. None in rows that were
            written before there was this column.
    """

    shard: str
    first_pair: int
    num_pairs: int
    num_bytes: int
    sha256: str
    fingerprint: str
    seconds: float
    host: str
    device: str
    batch_size: int
    versions: str
    xxh3_128: str | None = None

    def vouches_like(self, other: ManifestRow) -> bool:
        """Whether the two vouch for the same bytes, as far as both say it."""
        sums = {self.xxh3_128, other.xxh3_128} - {None}
        return (self.num_bytes, self.sha256) == (other.num_bytes, other.sha256) and len(sums) < 2


def shard_name(index: int) -> str:
    """Stem of a shard's files."""
    return f"pairs-{index:06d}"


def shard_index(name: str) -> int | None:
    """Place of a shard in the sequence by its name, None for a name that no shard has."""
    digits = name.removeprefix("pairs-")
    return int(digits) if digits.isdecimal() and name == shard_name(int(digits)) else None


def shard_path(root: Location | str, name: str) -> Location:
    """Where the tar of this name lies."""
    return location(root) / SHARD_FOLDER / f"{name}.tar"


def row_path(root: Location | str, name: str) -> Location:
    """Where the manifest row of this name lies."""
    return location(root) / ROW_FOLDER / f"{name}.parquet"


def write_row(root: Location | str, row: ManifestRow) -> bool:
    """Commits a shard's row, unless one is there; whether it was this one that was committed."""
    return commit_bytes(row_path(root, row.shard), _to_parquet([row]), exclusive=True)


def replace_row(root: Location | str, row: ManifestRow) -> None:
    """Commits a shard's row in place of whatever stands there."""
    # The joined table first: it would go on vouching for the old row. And last: whoever was just joining has the old row.
    remove(location(root) / JOINED_FILE)
    commit_bytes(row_path(root, row.shard), _to_parquet([row]))
    remove(location(root) / JOINED_FILE)


def restore_row(root: Location | str, row: ManifestRow) -> None:
    """Commits again a row that was lost or damaged; a joined table that holds it stays true."""
    commit_bytes(row_path(root, row.shard), _to_parquet([row]))


def read_row(root: Location | str, name: str) -> ManifestRow | None:
    """The committed row of a shard, None where there is none.

    Raises:
        Failed: the file is there and cannot be read as this shard's row.
    """
    (row,) = read_rows(root, [name])
    return row


def read_rows(root: Location | str, names: Sequence[str]) -> Iterator[ManifestRow | None]:
    """The committed rows of shards, in the order asked for. Each is as `read_row` gives it."""
    paths = [row_path(root, name) for name in names]
    for name, path, data in zip(names, paths, read_each(paths), strict=True):
        if data is None:
            yield None
            continue
        try:
            rows = _from_parquet(path, data)
        except Failed as error:
            raise Failed(f"{error}; run `tokenleap shards repair {root}`") from error
        if len(rows) != 1 or rows[0].shard != name:
            raise Failed(f"{path} does not hold the one row of {name}; run `tokenleap shards repair {root}`")
        yield rows[0]


def read_joined(root: Location | str) -> dict[str, ManifestRow]:
    """The rows of the joined table by shard; none where there is no such table.

    Raises:
        Failed: the file is there and cannot be read.
    """
    path = location(root) / JOINED_FILE
    (data,) = read_each([path])
    if data is None:
        return {}
    try:
        rows = _from_parquet(path, data)
        by_shard = {row.shard: row for row in rows}
        if len(by_shard) < len(rows):
            raise Failed(f"{path} holds two rows of one shard")
    except Failed as error:
        raise Failed(f"{error}; delete it, it can be made again from {ROW_FOLDER}/") from error
    return by_shard


def write_joined(root: Location | str, rows: Sequence[ManifestRow]) -> Location:
    """Writes rows into one file beside dataset.json; derived, deletable."""
    path = location(root) / JOINED_FILE
    commit_bytes(path, _to_parquet(rows))
    return path


def forget(root: Location | str, name: str) -> None:
    """Takes back a shard's row, so that the shard counts as not made."""
    # The joined table as in `replace_row`: a copy of the row that outlived the row would still vouch for the shard.
    remove(location(root) / JOINED_FILE)
    remove(row_path(root, name))
    remove(location(root) / JOINED_FILE)


def row_problem(spec: PairSpec, row: ManifestRow) -> str | None:
    """What is wrong with a row of this data set, None where nothing is."""
    if row.fingerprint != spec.fingerprint:
        return f"its shard belongs to other pairs (fingerprint {row.fingerprint}, here {spec.fingerprint})"
    if row.num_pairs != spec.pairs_per_shard:
        return f"num_pairs is {row.num_pairs}: every shard holds {spec.pairs_per_shard} pairs"
    if row.first_pair % spec.pairs_per_shard or row.shard != shard_name(
        row.first_pair // spec.pairs_per_shard
    ):
        return f"first_pair is {row.first_pair}, which is not where {row.shard} begins"
    return None


def table_problem(path: Location, rows: Sequence[ManifestRow]) -> str | None:
    """What a file of rows holds that its rows do not account for, None where it is nothing.

    Bytes that changed without changing a row are known by writing the rows again; where another version of the
    library wrote the file, which may write the same otherwise, they are not.
    """
    found, written = read_bytes(path), _to_parquet(rows)
    if found == written:
        return None
    here, there = _writer(written), _writer(found)
    if here != there and _WRITER.fullmatch(there):
        return None
    return f"{path} holds other bytes than those that its rows were written as: the file was changed"


def _writer(data: bytes) -> str:
    """The library that wrote a table, as its footer names it; nothing where it names none."""
    import pyarrow
    import pyarrow.parquet

    try:
        writer = pyarrow.parquet.read_metadata(pyarrow.BufferReader(data)).created_by
    except UnicodeDecodeError:
        return ""
    return writer or ""


@cache
def _schema(later: bool) -> Any:
    """What a table of shards holds, with or without the columns that came later."""
    import pyarrow

    names = [name for name in _COLUMNS if later or name not in _LATER]
    return pyarrow.schema([(name, pyarrow.type_for_alias(_COLUMNS[name])) for name in names])


def _to_parquet(rows: Sequence[ManifestRow]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    # Rows of an earlier version are written as that version wrote them.
    schema = _schema(later=any(row.xxh3_128 is not None for row in rows))
    table = pyarrow.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    pyarrow.parquet.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def _from_parquet(path: Location, data: bytes) -> list[ManifestRow]:
    import pyarrow

    try:
        table = read_parquet(data, verify_checksums=True)
        schema = _schema(later=not _LATER.isdisjoint(table.column_names))
        table = table.select(schema.names)
        # Types are in the footer, which no checksum covers.
        if not table.schema.equals(schema):
            raise ValueError("a column is of another type")
        return [ManifestRow(**row) for row in table.to_pylist()]
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise Failed(f"{path} is not a readable table of shards: {error}") from error
