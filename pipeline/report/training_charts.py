"""Charts of the training metrics over training steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.report.figure_style import SETTING_COLOURS, add_header, draw, new_figure, scale_values, style
from pipeline.report.html import data_url
from pipeline.report.metric_names import LINEAR, axis_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS = 400


def training_charts(metrics: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str]]:
    """Title and URL of a chart for each column of the training log that is not constant, over its `step` column."""
    steps = metrics.get("step", ())
    for name, values in metrics.items():
        points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        if name != "step" and len({value for _, value in points}) > 1:
            title = name.replace("_", " ").removesuffix(" bytes")
            yield title, data_url("image/svg+xml", draw(line_chart(name, points)).svg)


@style()
def line_chart(metric: str, points: Sequence[tuple[float, float]]) -> Figure:
    """One line over training steps; the value axis is logarithmic if the values span a large ratio.

    The points (step, value) are finite, by ascending step. At most `MAX_POINTS` are drawn, always with the last one.
    """
    stride = -(-len(points) // MAX_POINTS)
    steps, values = zip(*points[::-1][::stride][::-1], strict=True)
    label = axis_label(metric)
    if metric.endswith("_bytes"):
        unit, name = (1e9, "GB") if max(values) >= 1e9 else (1e6, "MB")
        values, label = tuple(value / unit for value in values), f"{label} ({name})"
    figure, axes = new_figure("training step", label)
    axes.plot(steps, values, color=SETTING_COLOURS[0], linewidth=1.5)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    scale_values(axes, values, linear=metric in LINEAR)
    note = " (log)" if axes.get_yscale() == "log" else ""
    if axes.get_yscale() == "linear":
        axes.ticklabel_format(axis="y", useOffset=False)
    add_header(figure, f"{metric.replace('_', ' ').removesuffix(' bytes')}{note}", [])
    return figure
