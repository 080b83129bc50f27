"""The finished cells of an ablation's folder, gathered in one long table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from pipeline.ablation.ablation import Ablation, differing_keys
from pipeline.ablation.cell import CellDir
from pipeline.ablation.grid import Cell, swept_values
from pipeline.config.run_config import RunConfig
from shards.core.errors import Refused
from shards.core.mismatch import flat
from shards.storage.files import commit_bytes


def write_table(ablation: Ablation) -> None:
    """Gather the numbers of every finished cell in the folder, those of earlier commands too.

    Raises:
        Refused: a cell is damaged or another ablation's, or the folder cannot be written to.
    """
    found = read_cells(ablation)
    swept = sorted({key for cell in found for key in swept_values(ablation.base, cell.config)})
    columns: list[tuple[str, Any]] = [
        ("cell", pyarrow.string()),
        ("size", pyarrow.int64()),
        ("seed", pyarrow.int64()),
        ("timesteps", pyarrow.string()),
        *((key, pyarrow.string()) for key in swept),
        ("step", pyarrow.int64()),
        ("epoch", pyarrow.float64()),
        ("pairs_seen", pyarrow.int64()),
        ("method", pyarrow.string()),
        ("metric", pyarrow.string()),
        ("value", pyarrow.float64()),
        ("protocol", pyarrow.string()),
    ]
    rows = [row for cell in found for row in _rows(ablation, cell, swept)]
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(columns))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    commit_bytes(ablation.table_file, buffer.getvalue())


def read_cells(ablation: Ablation) -> list[Cell]:
    """All finished cells in the folder, by timesteps, swept values, size and seed.

    Raises:
        Refused: a cell is damaged or another ablation's.
    """
    return sorted(_finished_cells(ablation), key=lambda cell: _place(ablation.base, cell))


def _finished_cells(ablation: Ablation) -> Iterator[Cell]:
    folders = sorted(ablation.cells_folder.iterdir()) if ablation.cells_folder.is_dir() else []
    for folder in folders:
        cell = CellDir(folder)
        if not cell.run.config.is_file():
            continue
        config = cell.run.read_config()
        if differing := differing_keys(ablation, config, swept=True):
            raise Refused(f"{folder} is a cell of another ablation ({'; '.join(differing)}): take it away")
        if cell.is_finished(config):
            yield Cell(folder.name, config)


def _rows(ablation: Ablation, cell: Cell, swept: list[str]) -> Iterator[dict[str, Any]]:
    folder, train = ablation.cell_dir(cell), cell.config.train
    values = flat(cell.config.model_dump())
    for step in folder.steps():
        for number in folder.numbers(step):
            yield {
                "cell": cell.name,
                "size": cell.size,
                "seed": train.seed,
                "timesteps": ",".join(map(str, cell.config.student.timesteps)),
                **{key: str(values[key]) for key in swept},
                "step": step,
                "epoch": step * train.batch_size / cell.size,
                "pairs_seen": step * train.batch_size,
                **number,
            }


def _place(base: RunConfig, cell: Cell) -> tuple[Any, ...]:
    swept = sorted((key, str(value)) for key, value in swept_values(base, cell.config).items())
    return cell.config.student.timesteps, swept, cell.size, cell.config.train.seed
