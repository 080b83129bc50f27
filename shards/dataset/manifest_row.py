"""Manifest rows: one Parquet file per shard, committed after its tar. The row is the shard's commit mark.

pyarrow is imported inside functions: importing it at the top would double the time of `--help`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
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
_TYPES = {"str": "string", "str | None": "string", "int": "int64", "float": "float64"}
_ADDED_COLUMNS = {"xxh3_128"}
"""Columns that are missing in tables of earlier versions."""


@dataclass(frozen=True)
class ManifestRow:
    """One committed shard: its pairs, its tar (hashes in hex), and the host, device and software that generated it.

    The fields are the columns of the tables, in their order. Changing them breaks: SHARD FORMAT.
    """

    shard: str  #: the stem of its file, `pairs-000000`
    first_pair: int
    num_pairs: int
    num_bytes: int
    sha256: str
    fingerprint: str  #: of its data set
    seconds: float
    host: str
    device: str
    batch_size: int  #: pairs mapped at a time
    versions: str
    xxh3_128: str | None = None  #: a fast hash that detects accidental damage; None in rows of earlier versions

    def same_file(self, other: ManifestRow) -> bool:
        """True if both rows record the same size and the same hashes; a missing xxh3_128 is ignored."""
        hashes = {self.xxh3_128, other.xxh3_128} - {None}
        return (self.num_bytes, self.sha256) == (other.num_bytes, other.sha256) and len(hashes) < 2


def shard_name(index: int) -> str:
    """Stem of a shard's files."""
    return f"pairs-{index:06d}"


def shard_index(name: str) -> int | None:
    """Index of a shard by its name, None if the name is not that of a shard."""
    digits = name.removeprefix("pairs-")
    return int(digits) if digits.isdecimal() and name == shard_name(int(digits)) else None


def shard_path(root: Location | str, name: str) -> Location:
    """Path of a shard's tar."""
    return location(root) / SHARD_FOLDER / f"{name}.tar"


def row_path(root: Location | str, name: str) -> Location:
    """Path of a shard's manifest row."""
    return location(root) / ROW_FOLDER / f"{name}.parquet"


def write_row(root: Location | str, row: ManifestRow, exclusive: bool = True) -> bool:
    """Commit a shard's row. With `exclusive`, returns False and writes nothing if the shard has one."""
    return commit_bytes(row_path(root, row.shard), _to_parquet([row]), exclusive)


def replace_row(root: Location | str, row: ManifestRow) -> None:
    """Commit a shard's row in place of an existing one."""
    # Remove the joined table before the change (it contains the old row) and again after it (a concurrent join may
    # have rewritten it).
    remove(location(root) / JOINED_FILE)
    write_row(root, row, exclusive=False)
    remove(location(root) / JOINED_FILE)


def read_row(root: Location | str, name: str) -> ManifestRow | None:
    """Read the committed row of a shard, None if there is none. Raises `Failed` if it is not a row of this shard."""
    (row,) = read_rows(root, [name])
    return row


def read_rows(root: Location | str, names: Sequence[str]) -> Iterator[ManifestRow | None]:
    """The committed rows of shards in the given order, each as `read_row` returns it."""
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
            raise Failed(f"{path} does not contain exactly the row of {name}; run `tokenleap shards repair {root}`")
        yield rows[0]


def read_joined(root: Location | str) -> dict[str, ManifestRow]:
    """The rows of the joined table by shard; empty if there is no such table. Raises `Failed` if it cannot be read."""
    path = location(root) / JOINED_FILE
    (data,) = read_each([path])
    if data is None:
        return {}
    try:
        rows = _from_parquet(path, data)
        by_shard = {row.shard: row for row in rows}
        if len(by_shard) < len(rows):
            raise Failed(f"{path} contains two rows of one shard")
    except Failed as error:
        raise Failed(f"{error}; delete it, it can be rebuilt from {ROW_FOLDER}/") from error
    return by_shard


def write_joined(root: Location | str, rows: Sequence[ManifestRow]) -> Location:
    """Write rows to one file next to dataset.json. It is derived data and may be deleted."""
    path = location(root) / JOINED_FILE
    commit_bytes(path, _to_parquet(rows))
    return path


def remove_row(root: Location | str, name: str) -> None:
    """Delete a shard's row, so that the shard counts as not generated."""
    # The joined table is removed before and after, as in `replace_row`.
    remove(location(root) / JOINED_FILE)
    remove(row_path(root, name))
    remove(location(root) / JOINED_FILE)


def row_problem(spec: PairSpec, row: ManifestRow) -> str | None:
    """Describe what is wrong with a row of this data set, None if nothing is."""
    if row.fingerprint != spec.fingerprint:
        return f"its shard belongs to other pairs (fingerprint {row.fingerprint}, here {spec.fingerprint})"
    if row.num_pairs != spec.pairs_per_shard:
        return f"num_pairs is {row.num_pairs}: every shard has {spec.pairs_per_shard} pairs"
    if row.first_pair % spec.pairs_per_shard or row.shard != shard_name(row.first_pair // spec.pairs_per_shard):
        return f"first_pair is {row.first_pair}, which is not the first pair of {row.shard}"
    return None


def table_problem(path: Location, rows: Sequence[ManifestRow]) -> str | None:
    """Describe bytes of a row file that its rows do not explain, None if there are none.

    Changed bytes that leave all rows unchanged are detected by writing the rows again. Files of other versions of the
    library are skipped, because they may encode the same rows differently.
    """
    stored, rewritten = read_bytes(path), _to_parquet(rows)
    if stored == rewritten:
        return None
    stored_writer = _writer(stored)
    if stored_writer != _writer(rewritten) and _WRITER.fullmatch(stored_writer):
        return None
    return f"{path} differs from what its rows are written as: the file was changed"


def _writer(data: bytes) -> str:
    """The library that wrote a table, from the table's footer; empty if the footer does not name it."""
    import pyarrow
    import pyarrow.parquet

    try:
        writer = pyarrow.parquet.read_metadata(pyarrow.BufferReader(data)).created_by
    except UnicodeDecodeError:
        return ""
    return writer or ""


def _schema(with_added: bool) -> Any:
    """Schema of a table of shards, with or without the columns that earlier versions lack."""
    import pyarrow

    columns = [field for field in fields(ManifestRow) if with_added or field.name not in _ADDED_COLUMNS]
    return pyarrow.schema([(column.name, pyarrow.type_for_alias(_TYPES[str(column.type)])) for column in columns])


def _to_parquet(rows: Sequence[ManifestRow]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    # Rows of an earlier version keep the schema of that version.
    schema = _schema(with_added=any(row.xxh3_128 is not None for row in rows))
    table = pyarrow.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    pyarrow.parquet.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def _from_parquet(path: Location, data: bytes) -> list[ManifestRow]:
    import pyarrow

    try:
        table = read_parquet(data, verify_checksums=True)
        schema = _schema(with_added=not _ADDED_COLUMNS.isdisjoint(table.column_names))
        table = table.select(schema.names)
        # Types are stored in the footer, which has no checksum.
        if not table.schema.equals(schema):
            raise ValueError("a column is of another type")
        return [ManifestRow(**row) for row in table.to_pylist()]
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise Failed(f"{path} is not a readable table of shards: {error}") from error
