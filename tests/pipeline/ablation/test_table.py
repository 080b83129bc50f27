"""Final values, curves, Markdown and CSV of an ablation's long table, against numbers calculated by hand."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.ablation.table import (
    AblationSetting,
    FinalValue,
    Point,
    Series,
    final_values,
    learning_curves,
    read_table,
    settings_of,
    summary_table,
    to_csv,
    values_by_size,
)
from pipeline.report.metric_names import GENERALISATION_GAP
from shards.core.errors import Failed, Refused

pytestmark = pytest.mark.quick

BOTH = AblationSetting("0,8")
LOSS, TRAIN = "heldout_token_loss", "train_token_loss"


def row(cell: str, size: int, seed: int, step: int, metric: str, value: float | None, **more: Any) -> dict[str, Any]:
    cell_columns = {"cell": cell, "size": size, "seed": seed, "timesteps": "0,8"}
    position = {"step": step, "epoch": step / 10, "pairs_seen": step * 5}
    measurement = {"method": None, "metric": metric, "value": value, "protocol": "7 held-out pairs"}
    return {**cell_columns, **position, **measurement, **more}


def two_seeds() -> list[dict[str, Any]]:
    return [
        *(row("a", 50, 0, 10, LOSS, 3.0), row("a", 50, 0, 20, LOSS, 1.0)),
        *(row("b", 50, 1, 10, LOSS, 5.0), row("b", 50, 1, 20, LOSS, 2.0)),
        *(row("a", 50, 0, 20, TRAIN, 0.75), row("b", 50, 1, 20, TRAIN, 1.5)),
    ]


def table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(rows)


def numbers(rows: list[dict[str, Any]], **options: Any) -> dict[tuple[Any, ...], FinalValue]:
    finals = final_values(table(rows), **options)
    return {(final.series.method, final.series.metric, final.size): final for final in finals}


def test_final_values_are_those_of_the_last_step_combined_over_seeds() -> None:
    final = numbers(two_seeds())[None, LOSS, 50]
    assert (final.mean, len(final.seeds), final.step, final.epoch) == (1.5, 2, 20, 2.0)
    # |1 - 1.5|² + |2 - 1.5|², over one degree of freedom.
    assert final.spread == pytest.approx(math.sqrt(0.5))


def test_the_gap_is_computed_for_each_cell() -> None:
    final = numbers(two_seeds())[None, GENERALISATION_GAP, 50]
    assert sorted(value for _, value in final.seeds) == [0.25, 0.5]
    assert final.mean == 0.375
    # The spread of the differences is 0.177, less than that of the losses.
    assert final.spread == pytest.approx(0.25 / math.sqrt(2))


def test_one_seed_has_no_spread() -> None:
    final = numbers(two_seeds()[:2])[None, LOSS, 50]
    assert final.spread is None
    assert summary_table([final]).markdown()[-1] == "| 0,8 | 50 | 1 | 1.0000 |"


def test_unfinished_cells_are_left_out() -> None:
    rows = [*two_seeds(), row("c", 50, 2, 10, LOSS, 9.0)]
    assert numbers(rows)[None, LOSS, 50].mean == 4.0
    assert numbers(rows, without={"c"})[None, LOSS, 50].mean == 1.5
    (curve,) = [curve for curve in learning_curves(table(rows), {"c"}) if curve.series.metric == LOSS]
    assert curve.points[0].mean == 4.0


def test_missing_and_non_finite_values_are_left_out() -> None:
    rows = [*two_seeds(), row("a", 50, 0, 20, "recall", math.nan), row("b", 50, 1, 20, "recall", None)]
    assert numbers(rows).keys() == numbers(two_seeds()).keys()


def test_curves_contain_mean_and_spread_of_each_step() -> None:
    (curve,) = [curve for curve in learning_curves(table(two_seeds())) if curve.series.metric == LOSS]
    assert curve.series == Series(BOTH, None, LOSS)
    assert curve.points == (Point(1.0, 4.0, pytest.approx(math.sqrt(2))), Point(2.0, 1.5, pytest.approx(math.sqrt(0.5))))


def test_values_by_size_has_one_value_for_each_seed() -> None:
    rows = [*two_seeds(), row("d", 100, 0, 20, LOSS, 0.5)]
    assert values_by_size(final_values(table(rows)))[Series(BOTH, None, LOSS)] == ([50, 50, 100], [1.0, 2.0, 0.5])


def test_settings_differ_by_timesteps_and_swept_keys_and_are_sorted_as_numbers() -> None:
    key = "train.learning_rate"
    rows = [
        row(f"{timesteps}{rate}", 50, 0, 10, LOSS, 1.0, timesteps=timesteps, **{key: rate})
        for timesteps in ("0,12", "0,8")
        for rate in ("0.01", "0.003", None)
    ]
    assert [setting.text for setting in settings_of(final_values(table(rows)))] == [
        f"timesteps 0,8; {key} as preset",
        f"timesteps 0,8; {key} 0.003",
        f"timesteps 0,8; {key} 0.01",
        f"timesteps 0,12; {key} as preset",
        f"timesteps 0,12; {key} 0.003",
        f"timesteps 0,12; {key} 0.01",
    ]


def test_the_summary_table_has_a_row_for_each_setting_and_size() -> None:
    distance = row("a", 50, 0, 20, "frechet_distance", 0.5, method="student-1", protocol="digits")
    rows = [*two_seeds(), distance, row("d", 1000, 0, 20, LOSS, 0.5)]
    shown = summary_table(final_values(table(rows)))
    assert shown.header == (
        *("timesteps", "training pairs", "seeds"),
        *("held-out cross-entropy", "overfitting gap", "Fréchet distance, student-1"),
    )
    assert shown.rows == (
        ("0,8", "50", "2", "1.5000 ± 0.7071", "0.3750 ± 0.1768", "0.500 (1 of 2 seeds)"),
        ("0,8", "1,000", "1", "0.5000", "–", "–"),
    )


def test_markdown_lines_have_equal_numbers_of_cells_for_any_name() -> None:
    rows = [{**original, "train.odd": "a|b\nc"} for original in two_seeds()]
    lines = summary_table(final_values(table(rows))).markdown()
    assert len(lines) == 3
    assert [line.replace(r"\|", "").count("|") for line in lines] == [7, 7, 7]
    assert r"| a\|b c |" in lines[2]


def test_csv_contains_every_final_value_with_every_digit(ablation_table: Callable[..., Any]) -> None:
    finals = final_values(ablation_table(swept={"train.name, odd": ('"x"', "y")}))
    lines = list(csv.DictReader(to_csv(finals).splitlines()))
    assert len(lines) == len(finals) == 2 * 2 * 4 * (5 + 2 * 2)
    assert [float(line["mean"]) for line in lines] == [final.mean for final in finals]
    assert [float(line["spread"]) for line in lines] == [final.spread for final in finals]
    assert {line["train.name, odd"] for line in lines} == {'"x"', "y"}
    assert {line["method"] for line in lines} == {"", "student-1", "student-2"}


def test_an_empty_table_has_no_final_values() -> None:
    finals = final_values(table(two_seeds()).slice(0, 0))
    assert finals == []
    assert summary_table(finals).markdown()[0].startswith("| timesteps | training pairs | seeds |")
    assert len(to_csv(finals).splitlines()) == 1


def test_a_written_table_is_read_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "ablation.parquet"
    # Without methods the type of the column is null in the file.
    pyarrow.parquet.write_table(table(two_seeds()), path)
    assert pyarrow.types.is_string(read_table(path).schema.field("method").type)
    assert read_table(path).to_pylist() == table(two_seeds()).to_pylist()


@pytest.mark.parametrize("damage", ["cut", "text", "columns", "types"])
def test_a_damaged_table_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "ablation.parquet"
    valid = table(two_seeds())
    wrong = valid.set_column(valid.column_names.index("size"), "size", pyarrow.array(["many"] * len(valid)))
    written = {"columns": valid.drop_columns(["value"]), "types": wrong}.get(damage, valid)
    pyarrow.parquet.write_table(written, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    if damage == "text":
        path.write_text("no table")
    with pytest.raises(Refused, match=r"ablation.parquet.*delete it; `tokenleap ablate` collects it again"):
        read_table(path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="missing"):
        read_table(tmp_path / "ablation.parquet")
