"""The training metrics: one Parquet file for each checkpoint interval, joined into one table at the end.

Each file is named by its steps and committed before the checkpoint. A resumed training rewrites a lost file, so no row is
lost or duplicated.
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
    *("loss", "token_loss", "embedding_loss", "image_loss", "gradient_norm", "learning_rate"),
    *("heldout_token_loss", "heldout_token_match", "train_token_loss", "train_token_match"),
)
"""Columns of every table; the losses of each timestep, as `token_loss_at_5`, follow in alphabetical order."""
CLOCK_COLUMNS = ("images_per_second", "data_wait", "peak_memory_bytes")
"""Last columns, which depend on the machine. All other values are equal when a training is repeated."""

Board = Callable[[int, Mapping[str, float]], None]
"""Called with (step, values by name)."""


class MetricsLog:
    """Rows of metrics by step, buffered until `commit`; `board` receives each at once."""

    def __init__(self, folder: Path, first_step: int, board: Board | None = None) -> None:
        self.folder = folder
        self.board = board
        self.first_step = first_step
        self.rows: dict[int, dict[str, float]] = {}
        self.last: dict[str, float] = {}
        self.heldout_step: int | None = None

    def add(self, step: int, **values: float | Tensor) -> None:
        """Add values to the row of a step."""
        numbers = {name: float(value) for name, value in values.items()}
        self.rows.setdefault(step, {}).update(numbers)
        self.last.update(numbers)
        if "heldout_token_loss" in numbers:
            self.heldout_step = step
        if self.board is not None:
            self.board(step, numbers)

    def describe(self) -> str:
        """Describe the newest losses for the progress line."""
        losses = [name for name in ("token_loss", "embedding_loss", "image_loss") if name in self.last]
        parts = [f"{name.replace('_', ' ')} {self.last[name]:.3f}" for name in losses]
        if self.heldout_step is not None:
            gap = overfitting_gap(self.last["heldout_token_loss"], self.last["train_token_loss"])
            heldout = self.last["heldout_token_loss"]
            parts.append(f"at step {self.heldout_step:,} held out {heldout:.3f} (gap {gap:+.3f})")
        return ", ".join(parts)

    def commit(self, step: int) -> None:
        """Write the rows since the last commit, up to `step`."""
        rows = [{"step": at, **row} for at, row in sorted(self.rows.items())]
        path = self.folder / f"steps-{self.first_step:06d}-{step:06d}.parquet"
        commit_bytes(path, _to_bytes(_table(rows)))
        self.first_step, self.rows = step, {}


def overfitting_gap(heldout_token_loss: float, train_token_loss: float) -> float:
    """Held-out cross-entropy minus the cross-entropy on training pairs, in nats a token."""
    return heldout_token_loss - train_token_loss


def read_metrics(folder: Path) -> pyarrow.Table:
    """Read all committed rows by step; of overlapping files (a resumed run with another interval) the last one counts.

    Raises:
        Refused: A file is damaged.
    """
    tables = [_read_part(folder / name) for name in list_names(folder, ".parquet")]
    rows = {row["step"]: row for table in tables for row in table.to_pylist()}
    return _table([rows[step] for step in sorted(rows)])


def newest_values(folder: Path) -> dict[str, float]:
    """The last committed value of each column; raises as `read_metrics`."""
    rows = read_metrics(folder).to_pylist()
    return {name: value for row in rows for name, value in row.items() if name != "step" and value is not None}


def join_metrics(folder: Path, path: Path) -> None:
    """Write all committed rows as one table; raises as `read_metrics`."""
    commit_bytes(path, _to_bytes(read_metrics(folder)))


def _read_part(path: Path) -> pyarrow.Table:
    try:
        table = read_parquet(read_bytes(path))
        return table.cast(_schema(table.column_names))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, ValueError, OSError) as error:
        raise Refused(f"{path} is damaged ({error}): delete it to continue without the metrics of its steps") from error


def _table(rows: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    """Rows as a table with all columns in their fixed order."""
    optional = {name for row in rows for name in row} - {"step", *COLUMNS, *CLOCK_COLUMNS}
    names = ["step", *COLUMNS, *sorted(optional), *CLOCK_COLUMNS]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pyarrow.table(columns, schema=_schema(names))


def _schema(names: Sequence[str]) -> pyarrow.Schema:
    return pyarrow.schema([(name, pyarrow.int64() if name == "step" else pyarrow.float64()) for name in names])


def _to_bytes(table: pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


@contextmanager
def tensorboard(out: Path, first_step: int, enabled: bool, is_main: bool) -> Iterator[Board | None]:
    """Write metrics in `tensorboard/` of a student's folder; yields None if disabled, or if this process is not main.

    Events after `first_step`, from which the training resumes, are discarded.

    Raises:
        Refused: TensorBoard is enabled but not installed.
    """
    if enabled:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise Refused(
                "train.tensorboard needs the package tensorboard: pip install '.[tensorboard]', or set it to false"
            ) from error
    if not (enabled and is_main):
        yield None
        return
    with SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1) as writer:

        def board(step: int, numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        yield board
