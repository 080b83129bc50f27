"""The figures of an ablation, as a paper prints them and a phone shows them: one idea and one pair of axes each.

What is to be compared side by side has the same value axis: every function is given all numbers, and takes its limits
from all figures of its kind and metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from pipeline.ablation.table import AblationSetting, FinalValue, LearningCurve, Series, settings_of
from pipeline.report.figure_style import (
    MARKERS,
    QUIET,
    SETTING_COLOURS,
    head,
    new_figure,
    scale,
    scale_sizes,
    scale_values,
    style,
)
from pipeline.report.metric_names import GENERALISATION_GAP, LINEAR, axis_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure
EPOCHS = "epoch (passes over the pairs)"
PAIRS = "training pairs"


@runtime_checkable
class Law(Protocol):
    """A fitted law, as `pipeline.ablation.power_law.PowerLaw`."""

    def at(self, size_N: Any, /) -> tuple[Any, Any, Any]:
        """The middle, low and high values at sizes."""


Laws = Mapping[tuple[str, str | None, str], Any]
"""By setting (its text), method and metric; what is no `Law` is not drawn."""


class Stretch(NamedTuple):
    """A law between two sizes: its line, and the edges of its band."""

    size_N: np.ndarray
    middle_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray


def labels(settings: Sequence[AblationSetting]) -> dict[AblationSetting, str]:
    """Each setting in no more words than tell it from the others; in full where there is but one."""
    common = set.intersection(*(set(setting.parts) for setting in settings)) if len(settings) > 1 else set()
    return {setting: "; ".join(part for part in setting.parts if part not in common) for setting in settings}


@style()
def metric_against_size(
    finals: Sequence[FinalValue], metric: str, method: str | None = None, laws: Laws | None = None
) -> Figure:
    """Final values over the number of training pairs: mean and spread over seeds, seeds as faint dots, and laws.

    A law is drawn where there is one, dashed from the largest size of its setting to twice that.
    """
    shown = [final for final in finals if final.series.metric == metric]
    figure, axes = new_figure(PAIRS, axis_label(metric, shown[0].protocol))
    settings, drawn = settings_of(finals), _laws(shown, laws or {})
    handles = []
    for index, setting in enumerate(settings):
        own = [final for final in shown if final.series == Series(setting, method, metric)]
        if not own:
            continue
        colour, marker = _look(index)
        sizes = [final.size for final in own]
        if own[0].series in drawn:
            for (size_N, middle_N, low_N, high_N), line in zip(
                drawn[own[0].series], ("-", "--"), strict=True
            ):
                axes.plot(size_N, middle_N, line, color=colour, linewidth=1.5)
                axes.fill_between(size_N, low_N, high_N, color=colour, alpha=0.12, linewidth=0, zorder=1)
        else:
            axes.plot(sizes, [final.mean for final in own], color=colour, linewidth=0.8, alpha=0.6)
        for final in own:
            dots = [value for _, value in final.seeds]
            axes.plot([final.size] * len(dots), dots, ".", color=colour, alpha=0.35, markersize=5, zorder=3)
        bars = axes.errorbar(
            sizes,
            [final.mean for final in own],
            yerr=[final.spread or 0.0 for final in own],
            fmt=marker,
            color=colour,
            markersize=5,
            linewidth=1.2,
            capsize=2.5,
            zorder=4,
        )
        handles.append((bars, labels(settings)[setting]))
    scale_values(axes, _values(shown, drawn), metric in LINEAR)
    sizes = sorted({final.size for final in shown})
    scale_sizes(axes, sizes, max(sizes[-1], *(ahead.size_N[-1] for _, ahead in drawn.values()), 0))
    head(figure, describe_method(method), handles if len(settings) > 1 else [])
    return figure


@style()
def gap_against_size(finals: Sequence[FinalValue], laws: Laws | None = None) -> Figure:
    """How much better the student does on pairs that it learned from, over the number of training pairs."""
    figure = metric_against_size(finals, GENERALISATION_GAP, None, laws)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    if low <= 0 <= high:
        axes.axhline(0.0, color=QUIET, linewidth=0.8, zorder=1)
    return figure


@style()
def curves_by_size(
    curves: Sequence[LearningCurve], metric: str, method: str | None, setting: AblationSetting
) -> Figure:
    """A metric over epochs in one setting, a line for each size: figure 8 of arXiv 2412.17153."""
    sizes = sorted({curve.size for curve in curves})
    shades = dict(zip(sizes, _shades(len(sizes)), strict=True))
    lines = [
        (curve, shades[curve.size], "o", f"{curve.size:,} pairs")
        for curve in curves
        if curve.series == Series(setting, method, metric)
    ]
    title = " · ".join(filter(None, (describe_method(method), setting.text)))
    return _draw_curves([curve for curve in curves if curve.series.metric == metric], title, lines)


@style()
def curves_by_setting(curves: Sequence[LearningCurve], metric: str, method: str | None, size: int) -> Figure:
    """A metric over epochs at one size, a line for each setting: figure 7 of arXiv 2412.17153."""
    settings = settings_of(curves)
    names = labels(settings)
    lines = [
        (curve, *_look(settings.index(curve.series.setting)), names[curve.series.setting])
        for curve in curves
        if curve.series[1:] == (method, metric) and curve.size == size
    ]
    title = " · ".join(filter(None, (describe_method(method), f"{size:,} training pairs")))
    compared = [curve for curve in curves if curve.series.metric == metric and curve.size == size]
    return _draw_curves(compared, title, lines)


def comparable_size(curves: Iterable[LearningCurve], metric: str, method: str | None) -> int | None:
    """The largest size at which two settings can be compared, None where there is none."""
    sizes = [curve.size for curve in curves if curve.series[1:] == (method, metric)]
    return max((size for size in sizes if sizes.count(size) > 1), default=None)


def _draw_curves(
    compared: Sequence[LearningCurve], title: str, lines: Sequence[tuple[LearningCurve, Any, str, str]]
) -> Figure:
    """Lines with bands of the spread over a logarithmic epoch axis.

    Args:
        compared: what the value axis must have room for, all of one metric.
        title: above the axes.
        lines: curve, colour, marker and label of each.
    """
    metric = compared[0].series.metric
    figure, axes = new_figure(EPOCHS, axis_label(metric, compared[0].protocol))
    handles = []
    for curve, colour, marker, label in lines:
        # A logarithmic axis has no place for what was measured before the first step.
        points = [point for point in curve.points if point.epoch > 0]
        epochs, means = [point.epoch for point in points], np.array([point.mean for point in points])
        spreads = np.array([point.spread or 0.0 for point in points])
        (line,) = axes.plot(epochs, means, marker=marker, color=colour, markersize=3, linewidth=1.5)
        axes.fill_between(
            epochs, means - spreads, means + spreads, color=colour, alpha=0.18, linewidth=0, zorder=1
        )
        handles.append((line, label))
    scale_values(axes, _values(compared), metric in LINEAR)
    epochs = [point.epoch for curve, *_ in lines for point in curve.points if point.epoch > 0]
    if epochs:
        scale(axes.xaxis, axes.set_xscale, axes.set_xlim, min(epochs), max(epochs), logarithmic=True)
    head(figure, title, handles)
    return figure


def _laws(shown: Iterable[FinalValue], laws: Laws) -> dict[Series, tuple[Stretch, Stretch]]:
    """Every law of what a metric's figures show: over the sizes, and from the largest to twice that."""
    sizes: dict[Series, list[int]] = {}
    for final in shown:
        sizes.setdefault(final.series, []).append(final.size)
    found = {}
    for series, own in sizes.items():
        law = laws.get((series.setting.text, series.method, series.metric))
        if isinstance(law, Law):
            found[series] = (_stretch(law, min(own), max(own)), _stretch(law, max(own), 2 * max(own)))
    return found


def _stretch(law: Law, first: int, last: int) -> Stretch:
    size_N = np.geomspace(first, last, 40)
    return Stretch(size_N, *(np.asarray(values, dtype=np.float64) for values in law.at(size_N)))


def _values(
    shown: Iterable[FinalValue | LearningCurve], laws: Mapping[Series, Iterable[Stretch]] | None = None
) -> list[float]:
    """Every value that the figures of a metric have to show, with its spread, and of laws' bands what is near."""
    found: list[float] = []
    for number in shown:
        if isinstance(number, FinalValue):
            found += [value for _, value in number.seeds]
            pairs = [(number.mean, number.spread)]
        else:
            pairs = [(mean, spread) for epoch, mean, spread in number.points if epoch > 0]
        found += [mean + sign * (spread or 0.0) for mean, spread in pairs for sign in (-1, 1)]
    if laws:
        stretches = [stretch for pair in laws.values() for stretch in pair]
        found += [
            value for stretch in stretches for value in stretch.middle_N.tolist() if math.isfinite(value)
        ]
        # A band may be as wide as nothing is known; the numbers must stay readable beside it.
        low, high = min(found), max(found)
        margin = (high - low) / 4
        # Not down to zero, which no logarithmic axis has.
        floor = max(low - margin, low / 2) if low > 0 else low - margin
        for stretch in stretches:
            for edge_N in (stretch.low_N, stretch.high_N):
                found += np.clip(edge_N, floor, high + margin).tolist()
    return [value for value in found if math.isfinite(value)]


def _look(index: int) -> tuple[str, str]:
    """A setting's colour and marker."""
    return SETTING_COLOURS[index % len(SETTING_COLOURS)], MARKERS[(index // 7 + index) % len(MARKERS)]


def _shades(count: int) -> list[Any]:
    """From light for the smallest to dark for the largest, in even steps of lightness."""
    from matplotlib import colormaps

    return [colormaps["viridis"](position) for position in np.linspace(0.05, 0.82, count)[::-1]]


def describe_method(method: str | None) -> str:
    """`student-2` as `student-2 (two steps)`; others by their name."""
    name, _, steps = (method or "").rpartition("-")
    words = {"1": "one step", "2": "two steps"}.get(steps, f"{steps} steps")
    return f"{method} ({words})" if name == "student" and steps.isdigit() else method or ""
