"""Quality against time, one point for each method, as in Figure 3 of arXiv 2412.17153."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.report.figure_style import INK, POINTS, QUIET, SETTING_COLOURS, add_header, new_figure, scale, style
from pipeline.report.metric_names import axis_label
from pipeline.report.published_numbers import Published
from pipeline.run_folder.results import Row, largest_timed_batch, seconds_per_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

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
LINE_HEIGHT = 1.4
"""Line height of names relative to their font size."""


class Point(NamedTuple):
    """A method: milliseconds per image at the largest timed batch, without and with decoding, and its Frechet distance.

    The time with decoding is None if it was not measured.
    """

    name: str
    kind: str
    milliseconds: float
    decoded: float | None
    distance: float


def points(rows: Sequence[Row]) -> list[Point]:
    """The methods of an evaluation with both a time and a distance."""
    batch = largest_timed_batch(rows)
    return [
        Point(row["method"], kind, 1e3 * seconds, _milliseconds(row, batch), row[METRIC])
        for row in rows
        if batch and (seconds := seconds_per_image(row, batch)) and (kind := _kind(row["method"]))
        if row.get(METRIC) is not None
    ]


def _milliseconds(row: Row, batch: int) -> float | None:
    seconds = seconds_per_image(row, batch, decoding=True)
    return None if seconds is None else 1e3 * seconds


def _kind(method: str) -> str | None:
    return next((kind for kind in KINDS if method.startswith(kind)), None)


@style()
def quality_against_time(rows: Sequence[Row], protocol: str, published: Sequence[Published] = ()) -> Figure:
    """Frechet distance over milliseconds per image, both logarithmic; published points have hollow markers.

    `points` must find at least one method in the rows; `published` has rows of the same teacher.
    """
    measured = points(rows)
    references = [
        Point(entry.method, kind, 1e3 * entry.seconds_per_image, None, entry.frechet_distance)
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
            for point in of_kind:
                if point.decoded is not None:
                    ends = (point.milliseconds, point.decoded)
                    axes.plot(ends, (point.distance,) * 2, color=colour, linewidth=0.8, alpha=0.6, zorder=2)
    every = measured + references
    times = [time for point in every for time in (point.milliseconds, point.decoded) if time is not None]
    for name, values in (("x", times), ("y", [point.distance for point in every])):
        # Rounding can make a distance zero or negative, which has no logarithm.
        scale(axes, name, min(values), max(values), logarithmic=min(values) > 0)
    add_header(figure, "", handles)
    _name_points(figure, axes, measured, references)
    return figure


def _name_box(x: float, y: float, across: int, width: float, height: float) -> Bbox:
    """Box of a name to the right (`across` = 1), to the left (-1), or above or below (0) a point, in pixels."""
    from matplotlib.transforms import Bbox

    start = {1: x + 2 * MARK, -1: x - 2 * MARK - width, 0: x - width / 2}[across]
    return Bbox.from_extents(start, y - height / 2, start + width, y + height / 2)


def _name_points(figure: Figure, axes: Axes, named: Sequence[Point], others: Sequence[Point]) -> None:
    """Put each name next to its point, or farther away with a line to it, where it overlaps no name and no point."""
    from matplotlib.transforms import Bbox

    # The positions of points in pixels are known after the layout.
    figure.draw_without_rendering()
    positions = axes.transData.transform([(point.milliseconds, point.distance) for point in (*named, *others)])
    occupied = [Bbox.from_extents(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in positions]
    inside = axes.get_window_extent()
    height = POINTS * LINE_HEIGHT * figure.dpi / 72
    for index, point in enumerate(named):
        (x, y), width = positions[index], 0.46 * height * len(point.name)
        free = [
            (across, rise * height)
            for rise in (0, *(sign * rise for rise in range(1, 9) for sign in (1, -1)))
            for across in ((1, -1) if rise == 0 else (1, -1, 0))
            for box in [_name_box(x, y + rise * height, across, width, height)]
            if all(inside.contains(*corner) for corner in (box.min, box.max))
            and not any(box.fully_overlaps(other) for other in occupied)
        ]
        across, up = free[0] if free else (0, height)
        occupied.append(_name_box(x, y + up, across, width, height))
        axes.annotate(
            point.name,
            (point.milliseconds, point.distance),
            xytext=(across * 2 * MARK * 72 / figure.dpi, up * 72 / figure.dpi),
            textcoords="offset points",
            ha=("center", "left", "right")[across],
            va="center",
            fontsize=POINTS,
            color=INK if point.kind == "student" else QUIET,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
            if abs(up) > height
            else None,
            zorder=4,
        )
