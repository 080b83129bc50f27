"""The figures of an ablation, each with one pair of axes.

Figures of the same kind and metric have the same value axis, so every function takes the numbers of all of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.ablation.back_test import BackTest
from pipeline.ablation.power_law import NoFit, PowerLaw
from pipeline.ablation.table import AblationSetting, FinalValue, LearningCurve, Series, settings_of
from pipeline.report.figure_style import (
    MARKERS,
    QUIET,
    SETTING_COLOURS,
    add_header,
    new_figure,
    scale,
    scale_sizes,
    scale_values,
    style,
)
from pipeline.report.metric_names import GENERALISATION_GAP, LINEAR, axis_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Laws = Mapping[Series, BackTest]
"""The checked law of each series, or the reason why it has none."""


class Stretch(NamedTuple):
    """A law between two sizes: its line's style and opacity, and its line and the edges of its band."""

    line: str
    opacity: float
    size_N: np.ndarray
    middle_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray


def labels(settings: Sequence[AblationSetting]) -> dict[AblationSetting, str]:
    """The parts of each setting's name that distinguish it from the others; the full name of a single setting."""
    common = set.intersection(*(set(setting.parts) for setting in settings)) if len(settings) > 1 else set()
    return {setting: "; ".join(part for part in setting.parts if part not in common) for setting in settings}


@style()
def metric_against_size(
    finals: Sequence[FinalValue], metric: str, method: str | None = None, laws: Laws | None = None
) -> Figure:
    """Final values over the number of training pairs: mean and spread over seeds, seeds as faint dots, and laws.

    A law is dashed from the largest size of its setting to twice that size. Where its check missed, the law of the
    smaller sizes is faint and dashed up to the largest. The generalisation gap has a line at zero.
    """
    shown = [final for final in finals if final.series.metric == metric]
    figure, axes = new_figure("training set (pairs)", axis_label(metric, shown[0].protocol))
    settings, stretches = settings_of(finals), _stretches(shown, laws or {})
    handles = []
    for index, setting in enumerate(settings):
        series = Series(setting, method, metric)
        of_series = [final for final in shown if final.series == series]
        if not of_series:
            continue
        colour, marker = _colour_and_marker(index)
        sizes = [final.size for final in of_series]
        drawn = stretches.get(series, [])
        for line, opacity, size_N, middle_N, low_N, high_N in drawn:
            axes.plot(size_N, middle_N, line, color=colour, linewidth=1.5, alpha=opacity)
            axes.fill_between(size_N, low_N, high_N, color=colour, alpha=0.12 * opacity, linewidth=0, zorder=1)
        if len(drawn) < 2:
            # No law, or one that missed.
            axes.plot(sizes, [final.mean for final in of_series], color=colour, linewidth=0.8, alpha=0.6)
        for final in of_series:
            dots = [value for _, value in final.seeds]
            axes.plot([final.size] * len(dots), dots, ".", color=colour, alpha=0.35, markersize=5, zorder=3)
        bars = axes.errorbar(
            sizes,
            [final.mean for final in of_series],
            yerr=[final.spread or 0.0 for final in of_series],
            fmt=marker,
            color=colour,
            markersize=5,
            linewidth=1.2,
            capsize=2.5,
            zorder=4,
        )
        handles.append((bars, labels(settings)[setting]))
    scale_values(axes, _values(shown, stretches), metric in LINEAR)
    sizes = sorted({final.size for final in shown})
    ends = (round(stretch.size_N[-1]) for drawn in stretches.values() for stretch in drawn)
    scale_sizes(axes, sizes, max([sizes[-1], *ends]))
    add_header(figure, describe_method(method), handles if len(settings) > 1 else [])
    low, high = axes.get_ylim()
    if metric == GENERALISATION_GAP and low <= 0 <= high:
        axes.axhline(0.0, color=QUIET, linewidth=0.8, zorder=1)
    return figure


@style()
def curves_by_size(curves: Sequence[LearningCurve], metric: str, method: str | None, setting: AblationSetting) -> Figure:
    """A metric over epochs in one setting, with a line for each size, as in Figure 8 of arXiv 2412.17153."""
    from matplotlib import colormaps

    sizes = sorted({curve.size for curve in curves})
    # From light for the smallest size to dark for the largest, in even steps of lightness.
    shades = dict(zip(sizes, map(colormaps["viridis"], np.linspace(0.05, 0.82, len(sizes))[::-1]), strict=True))
    lines = [
        (curve, shades[curve.size], "o", f"{curve.size:,} pairs")
        for curve in curves
        if curve.series == Series(setting, method, metric)
    ]
    title = " · ".join(filter(None, (describe_method(method), setting.text)))
    return _draw_curves([curve for curve in curves if curve.series.metric == metric], title, lines)


@style()
def curves_by_setting(curves: Sequence[LearningCurve], metric: str, method: str | None, size: int) -> Figure:
    """A metric over epochs at one size, with a line for each setting, as in Figure 7 of arXiv 2412.17153."""
    settings = settings_of(curves)
    names = labels(settings)
    lines = [
        (curve, *_colour_and_marker(settings.index(curve.series.setting)), names[curve.series.setting])
        for curve in curves
        if curve.series[1:] == (method, metric) and curve.size == size
    ]
    title = " · ".join(filter(None, (describe_method(method), f"{size:,} training pairs")))
    compared = [curve for curve in curves if curve.series.metric == metric and curve.size == size]
    return _draw_curves(compared, title, lines)


def comparable_size(curves: Iterable[LearningCurve], metric: str, method: str | None) -> int | None:
    """The largest size for which two or more settings have a curve, None if there is none."""
    sizes = [curve.size for curve in curves if curve.series[1:] == (method, metric)]
    return max((size for size in sizes if sizes.count(size) > 1), default=None)


def _draw_curves(
    compared: Sequence[LearningCurve], title: str, lines: Sequence[tuple[LearningCurve, Any, str, str]]
) -> Figure:
    """Lines (curve, colour, marker, label) with bands of the spread over a logarithmic epoch axis.

    The value axis shows all curves of `compared`, which are of one metric.
    """
    metric = compared[0].series.metric
    figure, axes = new_figure("epoch (passes over the pairs)", axis_label(metric, compared[0].protocol))
    handles = []
    for curve, colour, marker, label in lines:
        # A logarithmic axis cannot show epoch 0.
        points = [point for point in curve.points if point.epoch > 0]
        epochs, means = [point.epoch for point in points], np.array([point.mean for point in points])
        spreads = np.array([point.spread or 0.0 for point in points])
        (line,) = axes.plot(epochs, means, marker=marker, color=colour, markersize=3, linewidth=1.5)
        axes.fill_between(epochs, means - spreads, means + spreads, color=colour, alpha=0.18, linewidth=0, zorder=1)
        handles.append((line, label))
    scale_values(axes, _values(compared), metric in LINEAR)
    epochs = [point.epoch for curve, *_ in lines for point in curve.points if point.epoch > 0]
    if epochs:
        scale(axes, "x", min(epochs), max(epochs), logarithmic=True)
    add_header(figure, title, handles)
    return figure


def _stretches(shown: Iterable[FinalValue], laws: Laws) -> dict[Series, list[Stretch]]:
    """Each law over the sizes of its series and on to twice the largest size; or the law that missed, over the sizes."""
    sizes = defaultdict(list)
    for final in shown:
        sizes[final.series].append(final.size)

    def stretch(law: PowerLaw, first: int, last: int, line: str, opacity: float = 1.0) -> Stretch:
        size_N = np.geomspace(first, last, 40)
        return Stretch(line, opacity, size_N, *(np.asarray(values, dtype=np.float64) for values in law.at(size_N)))

    stretches = {}
    for series, of_series in sizes.items():
        test, smallest, largest = laws.get(series), min(of_series), max(of_series)
        if test and not isinstance(test.law, NoFit):
            stretches[series] = [
                stretch(test.law, smallest, largest, "-"),
                stretch(test.law, largest, 2 * largest, "--"),
            ]
        elif test and test.missed:
            stretches[series] = [stretch(test.missed, smallest, largest, "--", 0.5)]
    return stretches


def _values(
    shown: Iterable[FinalValue | LearningCurve], laws: Mapping[Series, Sequence[Stretch]] | None = None
) -> list[float]:
    """Values that the axis must show: seeds, means, spreads, laws, and the nearby part of the laws' bands."""
    values: list[float] = []
    for number in shown:
        if isinstance(number, FinalValue):
            values += [value for _, value in number.seeds]
            pairs = [(number.mean, number.spread)]
        else:
            pairs = [(mean, spread) for epoch, mean, spread in number.points if epoch > 0]
        values += [mean + sign * (spread or 0.0) for mean, spread in pairs for sign in (-1, 1)]
    if laws:
        stretches = [stretch for drawn in laws.values() for stretch in drawn]
        for stretch in stretches:
            values += [value for value in stretch.middle_N.tolist() if math.isfinite(value)]
        # A band may be very wide; clip it so that the values remain readable.
        low, high = min(values), max(values)
        margin = (high - low) / 4
        # A logarithmic axis must not reach zero.
        floor = max(low - margin, low / 2) if low > 0 else low - margin
        for stretch in stretches:
            for edge_N in (stretch.low_N, stretch.high_N):
                values += np.clip(edge_N, floor, high + margin).tolist()
    return [value for value in values if math.isfinite(value)]


def _colour_and_marker(index: int) -> tuple[str, str]:
    """Colour and marker of a setting."""
    return SETTING_COLOURS[index % len(SETTING_COLOURS)], MARKERS[(index // 7 + index) % len(MARKERS)]


def describe_method(method: str | None) -> str:
    """`student-2 (two steps)` for `student-2`; the name of any other method."""
    name, _, steps = (method or "").rpartition("-")
    count = {"1": "one step", "2": "two steps"}.get(steps, f"{steps} steps")
    return f"{method} ({count})" if name == "student" and steps.isdigit() else method or ""
