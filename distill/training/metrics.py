"""The training log: one Parquet part between two checkpoints, joined into one table at the end.

A part is committed before its checkpoint and named by its steps, so a training that was killed writes the lost part
again, and no line is lost or doubled.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from torch import Tensor

from shards.core.errors import Refused
from shards.storage.files import commit_bytes, list_names, read_bytes
from shards.storage.parquet import read_parquet

COLUMNS = (
    "loss",
    "token_loss",
    "embedding_loss",
    "image_loss",
    "gradient_norm",
    "learning_rate",
    "heldout_token_loss",
    "heldout_token_match",
    "train_token_loss",
    "train_token_match",
)
"""Of every log; a head's loss at each timestep, as `token_loss_at_5`, follows them by name."""
CLOCK_COLUMNS = ("images_per_second", "data_wait", "peak_memory_bytes")
"""At the end: what the machine does to a training. All other numbers are the same whenever it is run again."""


Board = Callable[[int, Mapping[str, float]], None]
"""Told (step, numbers by name)."""


class MetricsLog:
    """Lines of numbers by step, kept until `commit`; `board` hears of each at once."""

    def __init__(self, folder: Path, first_step: int, board: Board | None = None) -> None:
        self.folder = folder
        self.board = board
        self.first_step = first_step
        self.rows: dict[int, dict[str, float]] = {}
        self.last: dict[str, float] = {}

    def add(self, step: int, **values: float | Tensor) -> None:
        """Add numbers to the line of a step."""
        numbers = {name: float(value) for name, value in values.items()}
        self.rows.setdefault(step, {}).update(numbers)
        self.last.update(numbers)
        if self.board is not None:
            self.board(step, numbers)

    def describe(self) -> str:
        """The newest losses, for a progress line."""
        losses = [name for name in ("token_loss", "embedding_loss", "image_loss") if name in self.last]
        words = [f"{name.removesuffix('_loss')} {self.last[name]:.3f}" for name in losses]
        if "heldout_token_loss" in self.last:
            gap = self.last["heldout_token_loss"] - self.last["train_token_loss"]
            words.append(f"held out {self.last['heldout_token_loss']:.3f} (gap {gap:+.3f})")
        return ", ".join(words)

    def commit(self, step: int) -> None:
        """Write the lines since the last commit, up to `step`."""
        rows = [{"step": at, **row} for at, row in sorted(self.rows.items())]
        path = self.folder / f"steps-{self.first_step:06d}-{step:06d}.parquet"
        commit_bytes(path, _to_bytes(_table(rows)))
        self.first_step, self.rows = step, {}


def read_metrics(folder: Path) -> pyarrow.Table:
    """All committed lines by step; the newest part wins where parts overlap (a resumed run with another interval).

    Raises:
        Refused: a part is damaged.
    """
    tables = [_read_part(folder / name) for name in list_names(folder, ".parquet")]
    rows = {row["step"]: row for table in tables for row in table.to_pylist()}
    return _table([rows[step] for step in sorted(rows)])


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
        table = read_parquet(read_bytes(path))
        return table.cast(_schema(table.column_names))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, ValueError, OSError) as error:
        raise Refused(
            f"{path} is damaged ({error}): delete it to go on without the lines of its steps in the log"
        ) from error


def _table(rows: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    """Lines as a table: the columns of every log, those that some logs have, the clock's."""
    others = {name for row in rows for name in row} - {"step", *COLUMNS, *CLOCK_COLUMNS}
    names = ["step", *COLUMNS, *sorted(others), *CLOCK_COLUMNS]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pyarrow.table(columns, schema=_schema(names))


def _schema(names: Sequence[str]) -> pyarrow.Schema:
    types = {"step": pyarrow.int64()}
    return pyarrow.schema([(name, types.get(name, pyarrow.float64())) for name in names])


def _to_bytes(table: pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


@contextmanager
def tensorboard(out: Path, first_step: int, wanted: bool, is_main: bool) -> Iterator[Board | None]:
    """What to tell each line of a log, if it is wanted.

    Args:
        out: the student's folder; events lie in `tensorboard/` there.
        first_step: where the training goes on: what was logged after it is taken back.
        wanted: whether anything is written.
        is_main: whether this process is the one that writes; the others are refused alike, and write nothing.

    Raises:
        Refused: it is wanted and not installed.
    """
    if not wanted:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise Refused(
            "train.tensorboard needs the package tensorboard: pip install '.[tensorboard]', or set it to false"
        ) from error
    if not is_main:
        yield None
        return
    with SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1) as writer:

        def board(step: int, numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        yield board
