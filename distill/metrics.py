"""The training log: one Parquet part between two checkpoints, joined into one table at the end.

A part is committed before its checkpoint and named by its steps, so a training that was killed writes the lost part
again, and no line is lost or doubled.
"""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
from torch import Tensor

from shards.errors import Refused
from shards.storage import commit_bytes, list_names, read_bytes

COLUMNS = (
    "loss",
    "token_loss",
    "embedding_loss",
    "image_loss",
    "gradient_norm",
    "learning_rate",
    "heldout_token_loss",
    "heldout_token_match",
)
SCHEMA = pyarrow.schema([("step", pyarrow.int64()), *((name, pyarrow.float64()) for name in COLUMNS)])


class MetricsLog:
    """Lines of numbers by step, kept until `commit`."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self.first_step = first_step
        self.rows: dict[int, dict[str, float]] = {}
        self.last: dict[str, float] = {}

    def add(self, step: int, **values: float | Tensor) -> None:
        """Add numbers to the line of a step."""
        numbers = {name: float(value) for name, value in values.items()}
        self.rows.setdefault(step, {}).update(numbers)
        self.last.update(numbers)

    def in_words(self) -> str:
        """The newest losses, for a progress line."""
        names = [name for name in ("token_loss", "embedding_loss", "image_loss") if name in self.last]
        return ", ".join(f"{name.removesuffix('_loss')} {self.last[name]:.3f}" for name in names)

    def commit(self, step: int) -> None:
        """Write the lines since the last commit, up to `step`."""
        rows = [
            {"step": at, **{name: row.get(name) for name in COLUMNS}} for at, row in sorted(self.rows.items())
        ]
        path = self.folder / f"steps-{self.first_step:06d}-{step:06d}.parquet"
        commit_bytes(path, _to_bytes(pyarrow.Table.from_pylist(rows, schema=SCHEMA)))
        self.first_step, self.rows = step, {}


def read_metrics(folder: Path) -> pyarrow.Table:
    """All committed lines by step; the newest part wins where parts overlap (a resumed run with another interval).

    Raises:
        Refused: a part is damaged.
    """
    tables = [_read_part(folder / name) for name in list_names(folder, ".parquet")]
    if not tables:
        return SCHEMA.empty_table()
    rows = {row["step"]: row for table in tables for row in table.to_pylist()}
    return pyarrow.Table.from_pylist([rows[step] for step in sorted(rows)], schema=SCHEMA)


def newest_values(folder: Path) -> dict[str, float]:
    """The last number that was committed of each column.

    Raises:
        Refused: a part is damaged.
    """
    return {
        name: value
        for row in read_metrics(folder).to_pylist()
        for name, value in row.items()
        if name != "step" and value is not None
    }


def join_metrics(folder: Path, path: Path) -> None:
    """Write all committed lines as one table.

    Raises:
        Refused: a part is damaged.
    """
    commit_bytes(path, _to_bytes(read_metrics(folder)))


def _read_part(path: Path) -> pyarrow.Table:
    try:
        data = io.BytesIO(read_bytes(path))
        # Without threads: a pool still at work when the process ends can abort it.
        return pyarrow.parquet.read_table(data, schema=SCHEMA, use_threads=False, pre_buffer=False)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OSError) as error:
        raise Refused(
            f"{path} is damaged ({error}): delete it to go on without the lines of its steps in the log"
        ) from error


def _to_bytes(table: pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()
