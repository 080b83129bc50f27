"""Training curves as inline SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 28, 26
MAX_POINTS = 400
LOG_RATIO = 20
"""A column that spans more than this ratio is drawn on a logarithmic axis."""


def training_curves(metrics: Mapping[str, Sequence[float]]) -> list[str]:
    """One chart for every column of the training log that moves, over its `step` column."""
    steps = metrics.get("step", ())
    curves = []
    for name, values in metrics.items():
        points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
        if name != "step" and len({y for _, y in points}) > 1:
            curves.append(line_chart(name.replace("_", " "), points))
    return curves


def line_chart(title: str, points: Sequence[tuple[float, float]]) -> str:
    """An SVG element: one line, a few ticks, x in training steps.

    Args:
        title: above the line.
        points: (x, y), finite, by ascending x; at least two different values of each.
    """
    points = _thinned(points)
    xs, ys = zip(*points, strict=True)
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > LOG_RATIO
    scale = math.log10 if logarithmic else float
    low, high = scale(min(ys)), scale(max(ys))
    span_x, span_y = max(xs) - min(xs), high - low

    def across(x: float) -> float:
        return LEFT + (x - min(xs)) / span_x * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (scale(y) - low) / span_y * (HEIGHT - TOP - BOTTOM)

    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    y_ticks = _powers(min(ys), max(ys)) if logarithmic else _round_numbers(min(ys), max(ys))
    marks = [
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>'
        for y in y_ticks
    ]
    marks += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x:,.0f}</text>'
        for x in _round_numbers(min(xs), max(xs))
        if across(x) < WIDTH - 2 * RIGHT
    ]
    note = " (log)" if logarithmic else ""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by training step">'
        f'<text class="title" x="{LEFT}" y="16">{escape(title)}{note}</text>'
        f'{"".join(marks)}<polyline points="{path}"/></svg>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most `MAX_POINTS` points, the last one among them."""
    stride = -(-len(points) // MAX_POINTS)
    return points[::-1][::stride][::-1]


def _round_numbers(low: float, high: float) -> list[float]:
    """Two to six ticks at multiples of 1, 2 or 5 times a power of ten."""
    widest = (high - low) / 2
    power = 10.0 ** math.floor(math.log10(widest))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= widest)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten in the range, thinned to five; the ends where there are fewer than two."""
    exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return (
        [10.0**exponent for exponent in exponents[:: -(-len(exponents) // 5)]]
        if len(exponents) > 1
        else [low, high]
    )
