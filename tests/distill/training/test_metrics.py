"""The training metrics: rows by step, complete after a kill, and a damaged file is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from distill.training.metrics import (
    CLOCK_COLUMNS,
    COLUMNS,
    MetricsLog,
    join_metrics,
    newest_values,
    read_metrics,
)
from shards.core.errors import Refused

pytestmark = pytest.mark.quick


def test_values_of_a_step_are_one_row_and_files_are_one_table(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.add(2, loss=torch.tensor(1.5))
    log.add(4, loss=1.25)
    log.add(4, heldout_token_loss=2.0)
    log.commit(4)
    log.add(6, loss=1.0)
    log.commit(6)
    lines = read_metrics(tmp_path).select(["step", "loss", "heldout_token_loss"]).to_pylist()
    assert [tuple(line.values()) for line in lines] == [(2, 1.5, None), (4, 1.25, 2.0), (6, 1.0, None)]
    assert newest_values(tmp_path) == {"loss": 1.0, "heldout_token_loss": 2.0}
    join_metrics(tmp_path, tmp_path / "joined" / "metrics.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "joined" / "metrics.parquet") == read_metrics(tmp_path)


def test_optional_columns_are_between_the_fixed_ones(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.add(1, token_loss_at_5=2.0, loss=3.0)
    log.commit(1)
    log.add(2, images_per_second=7.0, token_loss_at_0=1.0, loss=2.5)
    log.commit(2)
    table = read_metrics(tmp_path)
    assert table.column_names == ["step", *COLUMNS, "token_loss_at_0", "token_loss_at_5", *CLOCK_COLUMNS]
    assert table["token_loss_at_5"].to_pylist() == [2.0, None]
    assert table["token_loss_at_0"].to_pylist() == [None, 1.0]


def test_a_board_receives_every_row_at_once(tmp_path: Path) -> None:
    received: list[tuple[int, dict[str, float]]] = []
    log = MetricsLog(tmp_path, 0, lambda step, numbers: received.append((step, dict(numbers))))
    log.add(3, loss=torch.tensor(1.5))
    assert received == [(3, {"loss": 1.5})]


def test_a_missing_log_has_no_values(tmp_path: Path) -> None:
    assert newest_values(tmp_path / "metrics") == {}


def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.add(2, loss=1.5)
    log.commit(2)
    part = tmp_path / "steps-000000-000002.parquet"
    whole = part.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not parquet at all"):
        part.write_bytes(damaged)
        with pytest.raises(Refused, match=r"steps-000000-000002\.parquet is damaged .*delete it"):
            read_metrics(tmp_path)


def test_a_table_of_something_else_is_refused_by_its_name(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"step": ["one"]}), tmp_path / "other.parquet")
    with pytest.raises(Refused, match=r"other\.parquet is damaged"):
        read_metrics(tmp_path)
