"""Quality against time, one point for each method, as in Figure 3 of arXiv 2412.17153."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.report.figure_style import INK, QUIET, SETTING_COLOURS, add_header, new_figure, scale, style
from pipeline.report.metric_names import axis_label
from pipeline.report.published_numbers import Published
from pipeline.run_folder.results import Row, largest_timed_batch, seconds_per_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "teacher": ("the teacher", "s"),
    "student": ("the student", "o"),
    "pre-trained": ("student, with the teacher in between", "D"),
    "onestep*": ("positions independent", "X"),
}
"""Prefix of a method's name -> (legend entry, marker). Other methods are not timed."""
METRIC = "frechet_distance"
MARK = 4.0
"""Pixels from a marker's centre to its edge."""
NAME_POINTS, LINE_HEIGHT = 7, 1.6
"""Font size of names in points, and their line height relative to it."""


class Point(NamedTuple):
    """A method: milliseconds per image at the largest timed batch, and its Frechet distance."""

    name: str
    kind: str
    milliseconds: float
    distance: float


def points(rows: Sequence[Row]) -> list[Point]:
    """The methods of an evaluation with both a time and a distance."""
    batch = largest_timed_batch(rows)
    result = []
    for row in rows:
        seconds = None if batch is None else seconds_per_image(row, batch)
        kind, distance = _kind(row["method"]), row.get(METRIC)
        if seconds and distance is not None and kind:
            result.append(Point(row["method"], kind, 1e3 * seconds, distance))
    return result


def _kind(method: str) -> str | None:
    return next((kind for kind in KINDS if method.startswith(kind)), None)


@style()
def quality_against_time(rows: Sequence[Row], protocol: str, published: Sequence[Published] = ()) -> Figure:
    """Frechet distance over milliseconds per image, both logarithmic; published points have hollow markers.

    Args:
        rows: rows of an evaluation; `points` must find at least one method.
        protocol: the protocol's name, for the axis label.
        published: published rows of the same teacher.
    """
    measured = points(rows)
    references = [
        Point(entry.method, kind, 1e3 * entry.seconds_per_image, entry.frechet_distance)
        for entry in published
        if entry.seconds_per_image and not entry.is_later and (kind := _kind(entry.method))
    ]
    figure, axes = new_figure(
        f"milliseconds an image, in batches of {largest_timed_batch(rows)}", axis_label(METRIC, protocol)
    )
    handles = []
    for (kind, (title, marker)), colour in zip(KINDS.items(), SETTING_COLOURS, strict=False):
        for group, face, label in ((measured, colour, title), (references, "none", f"published: {title}")):
            of_kind = [point for point in group if point.kind == kind]
            if not of_kind:
                continue
            (markers,) = axes.plot(
                [point.milliseconds for point in of_kind],
                [point.distance for point in of_kind],
                marker,
                color=colour,
                markerfacecolor=face,
                markersize=6,
                zorder=3,
            )
            handles.append((markers, label))
    for axis, set_scale, set_limits, values in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim, [point.milliseconds for point in measured + references]),
        (axes.yaxis, axes.set_yscale, axes.set_ylim, [point.distance for point in measured + references]),
    ):
        low, high = min(values), max(values)
        # Rounding can make a distance zero or negative, which has no logarithm.
        scale(axis, set_scale, set_limits, low, high, logarithmic=low > 0)
    add_header(figure, "", handles)
    _name_points(figure, axes, measured, references)
    return figure


def _name_points(figure: Figure, axes: Axes, named: Sequence[Point], others: Sequence[Point]) -> None:
    """Put each name next to its point, or farther away with a line to it, where it overlaps no name and no point."""
    # The positions of points in pixels are known after the layout.
    figure.draw_without_rendering()
    positions = axes.transData.transform([(point.milliseconds, point.distance) for point in (*named, *others)])
    occupied = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in positions]
    inside = Box(*axes.get_window_extent().extents)
    height = NAME_POINTS * LINE_HEIGHT * figure.dpi / 72
    for index, point in enumerate(named):
        (x, y), width = positions[index], 0.4 * height * len(point.name)
        free = [
            (across, rise * height)
            for rise in (0, 1, -1, 2, -2, 3, -3, 4, -4)
            for across in ((1, -1) if rise == 0 else (1, -1, 0))
            if (box := Box.of_name(x, y + rise * height, across, width, height)).is_inside(inside)
            and not any(box.overlaps(other) for other in occupied)
        ]
        across, up = free[0] if free else (0, height)
        occupied.append(Box.of_name(x, y + up, across, width, height))
        axes.annotate(
            point.name,
            (point.milliseconds, point.distance),
            xytext=(across * 2 * MARK * 72 / figure.dpi, up * 72 / figure.dpi),
            textcoords="offset points",
            ha=("center", "left", "right")[across],
            va="center",
            fontsize=NAME_POINTS,
            color=INK if point.kind == "student" else QUIET,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
            if abs(up) > height
            else None,
            zorder=4,
        )


class Box(NamedTuple):
    """A rectangle in the figure, in pixels."""

    left: float
    low: float
    right: float
    high: float

    @classmethod
    def of_name(cls, x: float, y: float, across: int, width: float, height: float) -> Box:
        """Box of a name to the right (`across` = 1), to the left (-1), or above or below (0) a point."""
        start = {1: x + 2 * MARK, -1: x - 2 * MARK - width, 0: x - width / 2}[across]
        return cls(start, y - height / 2, start + width, y + height / 2)

    def overlaps(self, other: Box) -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high

    def is_inside(self, other: Box) -> bool:
        return other.left <= self.left and self.right <= other.right and other.low <= self.low and self.high <= other.high
