"""From the long table of an ablation to its final numbers and curves: what a paper's table and figures are made of.

A cell's final numbers are those of its last step. Seeds differ in nothing that is asked about, so they are taken
together: their mean, and the sample standard deviation as the spread. Nothing here draws.
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

from pipeline.report.metric_names import GENERALISATION_GAP
from pipeline.report.table import NOTHING, Table
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
"""What every table has; each further column is a swept key."""

SUMMARY = (
    ("heldout_token_loss", "held-out cross-entropy", 4),
    ("heldout_token_match", "held-out token match", 4),
    (GENERALISATION_GAP, "overfitting gap", 4),
    ("frechet_distance", "Fréchet distance", 3),
    ("recall", "recall", 3),
)
"""Metrics that the table for people shows, with their titles and digits; the CSV file has all."""

_LOSSES = ("heldout_token_loss", "train_token_loss")


@dataclass(frozen=True)
class AblationSetting:
    """What is compared at every size: the student's timesteps and a value for each swept key, as text.

    A value is None where the cell has none of its own, but the preset's.
    """

    timesteps: str
    swept: tuple[tuple[str, str | None], ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """One for each thing that may differ, in words."""
        swept = (f"{key} {value}" if value is not None else f"{key} as preset" for key, value in self.swept)
        return (f"timesteps {self.timesteps}", *swept)

    @property
    def text(self) -> str:
        """Names the setting everywhere: `timesteps 0,8; train.learning_rate 0.003`."""
        return "; ".join(self.parts)

    @property
    def order(self) -> tuple[Any, ...]:
        """By numbers where there are numbers, the preset's own value first."""
        values = [*self.timesteps.split(","), *(value for _, value in self.swept)]
        return tuple(_order(value) for value in values)


class Series(NamedTuple):
    """What is measured of what: a metric of a method (None: on pairs, without a method), in a setting."""

    setting: AblationSetting
    method: str | None
    metric: str


class SeedValue(NamedTuple):
    """What one cell came to."""

    seed: int
    value: float


@dataclass(frozen=True)
class FinalValue:
    """A number of the answer: what the seeds of one size came to at their last step."""

    series: Series
    size: int
    seeds: tuple[SeedValue, ...]
    step: int
    epoch: float
    protocol: str

    @cached_property
    def mean(self) -> float:
        return statistics.fmean(value for _, value in self.seeds)

    @cached_property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds, None where there is one."""
        return _spread([value for _, value in self.seeds])


class Point(NamedTuple):
    """Where the seeds of one size were on their way; the spread is None with one seed."""

    epoch: float
    mean: float
    spread: float | None


@dataclass(frozen=True)
class LearningCurve:
    """A metric on its way, by ascending epoch."""

    series: Series
    size: int
    points: tuple[Point, ...]
    protocol: str


def read_table(path: Path) -> pyarrow.Table:
    """The long table of an ablation.

    Raises:
        Refused: it is damaged, or is no such table.
        Failed: it is missing, or cannot be read.
    """
    import pyarrow

    way_out = "delete it; `tokenleap ablate` collects it again from the cells"
    data = read_bytes(path)
    try:
        table = read_parquet(data)
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(f"{path} is damaged: {way_out}") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise Refused(f"{path} is no table of an ablation, it lacks {', '.join(missing)}: {way_out}")
    types = [
        pyarrow.field(name, pyarrow.type_for_alias(COLUMNS.get(name, "string")))
        for name in table.column_names
    ]
    try:
        return table.cast(pyarrow.schema(types))
    except (pyarrow.ArrowException, ValueError) as error:
        raise Refused(f"{path} is no table of an ablation ({error}): {way_out}") from error


def final_numbers(table: pyarrow.Table, without: Collection[str] = ()) -> list[FinalValue]:
    """What the cells came to at their last steps, seeds taken together; by setting, size, method and metric.

    Args:
        table: the long table.
        without: names of cells that are not finished, whose last step is not their end.
    """
    rows = _rows(table, without)
    last: dict[str, int] = {}
    for row in rows:
        last[row["cell"]] = max(row["step"], last.get(row["cell"], 0))
    groups = defaultdict(list)
    for row in rows:
        if row["step"] == last[row["cell"]]:
            groups[row["series"], row["size"]].append(row)
    finals = [
        FinalValue(
            series=series,
            size=size,
            seeds=tuple(sorted(SeedValue(row["seed"], row["value"]) for row in group)),
            step=max(row["step"] for row in group),
            epoch=max(row["epoch"] for row in group),
            protocol=group[0]["protocol"],
        )
        for (series, size), group in groups.items()
    ]
    return sorted(finals, key=_in_order)


def curves(table: pyarrow.Table, without: Collection[str] = ()) -> list[LearningCurve]:
    """How the cells came there, seeds taken together step by step; in the order of `final_numbers`."""
    groups: defaultdict[tuple[Series, int], defaultdict[int, list[dict[str, Any]]]]
    groups = defaultdict(lambda: defaultdict(list))
    for row in _rows(table, without):
        groups[row["series"], row["size"]][row["step"]].append(row)
    found = []
    for (series, size), by_step in groups.items():
        points = [
            Point(group[0]["epoch"], statistics.fmean(values), _spread(values))
            for group in by_step.values()
            for values in ([row["value"] for row in group],)
        ]
        protocol = next(iter(by_step.values()))[0]["protocol"]
        found.append(LearningCurve(series, size, tuple(sorted(points)), protocol))
    return sorted(found, key=_in_order)


def values_by_size(finals: Iterable[FinalValue]) -> dict[Series, tuple[list[int], list[float]]]:
    """For each series its sizes and values, one a seed: what a law is fitted to."""
    found: defaultdict[Series, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for final in finals:
        sizes, values = found[final.series]
        sizes += [final.size] * len(final.seeds)
        values += [value for _, value in final.seeds]
    return dict(found)


def settings_of(numbers: Iterable[FinalValue | LearningCurve]) -> list[AblationSetting]:
    """Every setting, once, in order."""
    return sorted({number.series.setting for number in numbers}, key=lambda setting: setting.order)


def methods_of(numbers: Iterable[FinalValue | LearningCurve], metric: str) -> list[str | None]:
    """Of what a metric was measured, in order; [None] for a metric of pairs, [] for one that was not measured."""
    found = {number.series.method for number in numbers if number.series.metric == metric}
    return sorted(found, key=lambda method: method or "")


def summary_table(finals: Sequence[FinalValue]) -> Table:
    """A row for each setting and size, `mean ± spread` for each important metric that was measured."""
    columns = [
        (method, metric, f"{title}, {method}" if method else title, digits)
        for metric, title, digits in SUMMARY
        for method in methods_of(finals, metric)
    ]
    cells = {(final.series, final.size): final for final in finals}
    keys = [key for key, _ in finals[0].series.setting.swept] if finals else []
    table = []
    for setting, size in dict.fromkeys((final.series.setting, final.size) for final in finals):
        found = [cells.get((Series(setting, method, metric), size)) for method, metric, _, _ in columns]
        seeds = max((len(final.seeds) for final in found if final), default=0)
        numbers = [
            _describe(final, digits, seeds) for final, (_, _, _, digits) in zip(found, columns, strict=True)
        ]
        swept = [NOTHING if value is None else value for _, value in setting.swept]
        table.append((setting.timesteps, *swept, f"{size:,}", str(seeds), *numbers))
    header = ("timesteps", *keys, "training pairs", "seeds", *(title for _, _, title, _ in columns))
    return Table(header, tuple(table))


def to_markdown(finals: Sequence[FinalValue]) -> str:
    """The table for people."""
    table = summary_table(finals)
    first = table.header.index("training pairs")
    rule = ["---" if column < first else "---:" for column in range(len(table.header))]
    lines = [table.header, rule, *table.rows]
    escaped = ([" ".join(cell.replace("|", r"\|").split()) for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def to_csv(finals: Sequence[FinalValue]) -> str:
    """All final numbers, one a line, with every digit; the spread is empty where there is one seed."""
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
    """Rows that hold a number, each with its series, and one row more for the overfitting gap of each look."""
    keys = [name for name in table.column_names if name not in COLUMNS]
    rows = []
    for row in table.to_pylist():
        if row["cell"] not in without and row["value"] is not None and math.isfinite(row["value"]):
            setting = AblationSetting(row["timesteps"], tuple((key, row[key]) for key in keys))
            rows.append({**row, "series": Series(setting, row["method"], row["metric"])})
    return [*rows, *_gaps(rows)]


def _gaps(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    looks: defaultdict[tuple[str, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["metric"] in _LOSSES:
            looks[row["cell"], row["step"]][row["metric"]] = row
    for look in looks.values():
        if len(look) == len(_LOSSES):
            heldout, seen = (look[metric] for metric in _LOSSES)
            yield {
                **heldout,
                "series": Series(heldout["series"].setting, None, GENERALISATION_GAP),
                "metric": GENERALISATION_GAP,
                "value": heldout["value"] - seen["value"],
                "protocol": f"{heldout['protocol']} against {seen['protocol']}",
            }


def _in_order(number: FinalValue | LearningCurve) -> tuple[Any, ...]:
    setting, method, metric = number.series
    return setting.order, number.size, method or "", metric


def _order(value: str | None) -> tuple[int, float, str]:
    if value is None:
        return 0, 0.0, ""
    try:
        return 1, float(value), value
    except ValueError:
        return 2, 0.0, value


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _describe(final: FinalValue | None, digits: int, seeds: int) -> str:
    """`mean ± spread`; with the number of seeds only where a row's numbers differ in it."""
    if final is None:
        return NOTHING
    spread = "" if final.spread is None else f" ± {final.spread:.{digits}f}"
    fewer = f" ({len(final.seeds)} of {seeds} seeds)" if len(final.seeds) < seeds else ""
    return f"{final.mean:.{digits}f}{spread}{fewer}"
