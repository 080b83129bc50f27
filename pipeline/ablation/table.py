"""Final values and learning curves of an ablation, computed from its long table.

A cell's final values are those of its last step. Seeds are combined: mean, and sample standard deviation as the spread.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distill.training.metrics import overfitting_gap
from pipeline.report.metric_names import GENERALISATION_GAP
from pipeline.report.table import MISSING, Table, format_mean
from shards.core.errors import Refused
from shards.storage.files import read_bytes
from shards.storage.parquet import read_parquet

if TYPE_CHECKING:
    import pyarrow

COLUMNS = {
    "cell": "string",
    "size": "int64",
    "seed": "int64",
    "timesteps": "string",
    "step": "int64",
    "epoch": "float64",
    "pairs_seen": "int64",
    "method": "string",
    "metric": "string",
    "value": "float64",
    "protocol": "string",
}
"""Columns of every table with their types; each further column is a swept key."""

SUMMARY = (
    ("heldout_token_loss", "held-out cross-entropy", 4),
    ("heldout_token_match", "held-out token match", 4),
    (GENERALISATION_GAP, "overfitting gap", 4),
    ("frechet_distance", "Fréchet distance", 3),
    ("recall", "recall", 3),
)
"""Metrics of the summary table, with titles and digits; the CSV file has all metrics."""


@dataclass(frozen=True)
class AblationSetting:
    """What is compared at every size: the student's timesteps and the value of each swept key, as text.

    A value is None if the cell uses the preset's.
    """

    timesteps: str
    swept: tuple[tuple[str, str | None], ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """A description of the timesteps and of each swept key."""
        swept = (f"{key} {value}" if value is not None else f"{key} as preset" for key, value in self.swept)
        return (f"timesteps {self.timesteps}", *swept)

    @property
    def text(self) -> str:
        """The setting's name: `timesteps 0,8; train.learning_rate 0.003`."""
        return "; ".join(self.parts)

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: numbers by value, the preset's own value first."""
        values = [*self.timesteps.split(","), *(value for _, value in self.swept)]
        return tuple(_value_order(value) for value in values)


class Series(NamedTuple):
    """A metric of a method in a setting. The method is None for metrics that are measured on pairs."""

    setting: AblationSetting
    method: str | None
    metric: str


@dataclass(frozen=True)
class FinalValue:
    """A metric at the last step, over the seeds of one size; `seeds` contains (seed, value)."""

    series: Series
    size: int
    seeds: tuple[tuple[int, float], ...]
    step: int
    epoch: float
    protocol: str

    @cached_property
    def mean(self) -> float:
        return statistics.fmean(value for _, value in self.seeds)

    @cached_property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None with one seed."""
        return _spread([value for _, value in self.seeds])


class Point(NamedTuple):
    """A metric at one step, over the seeds of one size; the spread is None with one seed."""

    epoch: float
    mean: float
    spread: float | None


@dataclass(frozen=True)
class LearningCurve:
    """A metric by ascending epoch."""

    series: Series
    size: int
    points: tuple[Point, ...]
    protocol: str


def read_table(path: Path) -> pyarrow.Table:
    """Read the long table of an ablation.

    Raises:
        Refused: the file is damaged, or is not such a table.
        Failed: the file is missing, or cannot be read.
    """
    import pyarrow

    remedy = "delete it; `tokenleap ablate` collects it again from the cells"
    data = read_bytes(path)
    try:
        table = read_parquet(data)
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(f"{path} is damaged: {remedy}") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise Refused(f"{path} is not the table of an ablation, it has no column {', '.join(missing)}: {remedy}")
    types = [pyarrow.field(name, pyarrow.type_for_alias(COLUMNS.get(name, "string"))) for name in table.column_names]
    try:
        return table.cast(pyarrow.schema(types))
    except (pyarrow.ArrowException, ValueError) as error:
        raise Refused(f"{path} is not the table of an ablation ({error}): {remedy}") from error


def final_values(table: pyarrow.Table, without: Collection[str] = ()) -> list[FinalValue]:
    """Metrics at the last steps, combined over seeds; sorted by setting, size, method and metric.

    The last step of the unfinished cells in `without` is not the end of their training.
    """
    rows = _rows(table, without)
    last: dict[str, int] = {}
    for row in rows:
        last[row["cell"]] = max(row["step"], last.get(row["cell"], 0))
    groups = _by_series_and_size(row for row in rows if row["step"] == last[row["cell"]])
    finals = [
        FinalValue(
            series=series,
            size=size,
            seeds=tuple(sorted((row["seed"], row["value"]) for row in group)),
            step=max(row["step"] for row in group),
            epoch=max(row["epoch"] for row in group),
            protocol=group[0]["protocol"],
        )
        for (series, size), group in groups.items()
    ]
    return sorted(finals, key=_sort_key)


def learning_curves(table: pyarrow.Table, without: Collection[str] = ()) -> list[LearningCurve]:
    """Metrics at every step, combined over seeds; in the order of `final_values`."""
    curves = []
    for (series, size), group in _by_series_and_size(_rows(table, without)).items():
        by_epoch = defaultdict(list)
        for row in group:
            by_epoch[row["epoch"]].append(row["value"])
        points = (Point(epoch, statistics.fmean(values), _spread(values)) for epoch, values in sorted(by_epoch.items()))
        curves.append(LearningCurve(series, size, tuple(points), group[0]["protocol"]))
    return sorted(curves, key=_sort_key)


def values_by_size(finals: Iterable[FinalValue]) -> dict[Series, tuple[list[int], list[float]]]:
    """For each series the sizes and values of its cells, to which a power law is fitted."""
    result: defaultdict[Series, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for final in finals:
        sizes, values = result[final.series]
        sizes += [final.size] * len(final.seeds)
        values += [value for _, value in final.seeds]
    return dict(result)


def settings_of(numbers: Iterable[FinalValue | LearningCurve]) -> list[AblationSetting]:
    """The distinct settings, sorted."""
    return sorted({number.series.setting for number in numbers}, key=lambda setting: setting.order)


def methods_of(numbers: Iterable[FinalValue | LearningCurve], metric: str) -> list[str | None]:
    """The methods for which a metric was measured, sorted; [None] for a metric of pairs, [] if not measured."""
    methods = {number.series.method for number in numbers if number.series.metric == metric}
    return sorted(methods, key=lambda method: method or "")


def summary_table(finals: Sequence[FinalValue]) -> Table:
    """A row for each setting and size, with `mean ± spread` of each metric in `SUMMARY` that was measured.

    Rows that begin a new setting have the class `first`.
    """
    columns = [
        (method, metric, f"{title}, {method}" if method else title, digits)
        for metric, title, digits in SUMMARY
        for method in methods_of(finals, metric)
    ]
    by_series = {(final.series, final.size): final for final in finals}
    keys = [key for key, _ in finals[0].series.setting.swept] if finals else []
    grid = list(dict.fromkeys((final.series.setting, final.size) for final in finals))
    rows = []
    for setting, size in grid:
        cells = [by_series.get((Series(setting, method, metric), size)) for method, metric, _, _ in columns]
        num_seeds = max((len(final.seeds) for final in cells if final), default=0)
        numbers = [_describe(final, digits, num_seeds) for final, (_, _, _, digits) in zip(cells, columns, strict=True)]
        swept = [MISSING if value is None else value for _, value in setting.swept]
        rows.append((setting.timesteps, *swept, f"{size:,}", str(num_seeds), *numbers))
    classes = ("first" if before[0] != row[0] else "" for before, row in zip([*grid[:1], *grid], grid, strict=False))
    header = ("timesteps", *keys, "training pairs", "seeds", *(title for _, _, title, _ in columns))
    return Table(header, tuple(rows), num_labels=1 + len(keys), row_classes=tuple(classes))


def to_csv(finals: Sequence[FinalValue]) -> str:
    """All final values with every digit, one for each line; the spread is empty with one seed."""
    keys = [key for key, _ in finals[0].series.setting.swept] if finals else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("size", "method", "metric", "mean", "spread", "seeds", "step", "epoch", "protocol")
    writer.writerow(["timesteps", *keys, *numbers])
    for final in finals:
        (setting, method, metric), seeds = final.series, len(final.seeds)
        values = (final.size, method, metric, final.mean, final.spread, seeds, final.step, final.epoch)
        writer.writerow([setting.timesteps, *(value for _, value in setting.swept), *values, final.protocol])
    return text.getvalue()


def _rows(table: pyarrow.Table, without: Collection[str]) -> list[dict[str, Any]]:
    """Rows with a finite number, each with its series, and a row for the generalisation gap of each evaluation."""
    keys = [name for name in table.column_names if name not in COLUMNS]
    rows = []
    for row in table.to_pylist():
        if row["cell"] not in without and row["value"] is not None and math.isfinite(row["value"]):
            setting = AblationSetting(row["timesteps"], tuple((key, row[key]) for key in keys))
            rows.append({**row, "series": Series(setting, row["method"], row["metric"])})
    return [*rows, *_gaps(rows)]


def _gaps(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    by_metric = {(row["cell"], row["step"], row["metric"]): row for row in rows}
    for (cell, step, metric), heldout in by_metric.items():
        train = by_metric.get((cell, step, "train_token_loss"))
        if metric == "heldout_token_loss" and train:
            yield {
                **heldout,
                "series": Series(heldout["series"].setting, None, GENERALISATION_GAP),
                "metric": GENERALISATION_GAP,
                "value": overfitting_gap(heldout["value"], train["value"]),
                "protocol": f"{heldout['protocol']} against {train['protocol']}",
            }


def _by_series_and_size(rows: Iterable[dict[str, Any]]) -> dict[tuple[Series, int], list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["series"], row["size"]].append(row)
    return groups


def _sort_key(number: FinalValue | LearningCurve) -> tuple[Any, ...]:
    setting, method, metric = number.series
    return setting.order, number.size, method or "", metric


def _value_order(value: str | None) -> tuple[int, float, str]:
    if value is None:
        return 0, 0.0, ""
    try:
        return 1, float(value), value
    except ValueError:
        return 2, 0.0, value


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _describe(final: FinalValue | None, digits: int, num_seeds: int) -> str:
    """`mean ± spread`, with the number of seeds if it is smaller than that of the row."""
    if final is None:
        return MISSING
    fewer = f" ({len(final.seeds)} of {num_seeds} seeds)" if len(final.seeds) < num_seeds else ""
    return f"{format_mean(final.mean, final.spread, digits)}{fewer}"
