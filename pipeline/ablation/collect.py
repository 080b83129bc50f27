"""Collects the finished cells of an ablation's folder in one long table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from pipeline.ablation.ablation import Ablation, differing_keys
from pipeline.ablation.cell import CellDir
from pipeline.ablation.grid import Cell, swept_values
from pipeline.ablation.table import COLUMNS
from pipeline.config.run_config import RunConfig
from shards.core.errors import Refused
from shards.core.mismatch import flat
from shards.storage.files import commit_bytes


def write_table(ablation: Ablation) -> None:
    """Write the numbers of all finished cells in the folder, including those of earlier commands.

    Cells are sorted by timesteps, swept values, size and seed.

    Raises:
        Refused: a cell is damaged or belongs to another ablation, or the folder cannot be written to.
    """
    cells = sorted(_finished_cells(ablation), key=lambda cell: _sort_key(ablation.base, cell))
    swept = sorted({key for cell in cells for key in swept_values(ablation.base, cell.config)})
    types = list(COLUMNS.items())
    first_after_swept = list(COLUMNS).index("timesteps") + 1
    types[first_after_swept:first_after_swept] = [(key, "string") for key in swept]
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(alias)) for name, alias in types])
    rows = [row for cell in cells for row in _rows(ablation, cell, swept)]
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    commit_bytes(ablation.table_file, buffer.getvalue())


def _finished_cells(ablation: Ablation) -> Iterator[Cell]:
    folders = sorted(ablation.cells_folder.iterdir()) if ablation.cells_folder.is_dir() else []
    for folder in folders:
        cell = CellDir(folder)
        if not cell.config.is_file():
            continue
        config = cell.read_config()
        if differing := differing_keys(ablation, config, swept=True):
            raise Refused(f"{folder} is a cell of another ablation ({'; '.join(differing)}): move it elsewhere")
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


def _sort_key(base: RunConfig, cell: Cell) -> tuple[Any, ...]:
    swept = sorted((key, str(value)) for key, value in swept_values(base, cell.config).items())
    return cell.config.student.timesteps, swept, cell.size, cell.config.train.seed
