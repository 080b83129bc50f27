"""Quality against time, a point a method: the form of figure 3 of arXiv 2412.17153."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.report.figure_style import INK, QUIET, SETTING_COLOURS, head, new_figure, scale, style
from pipeline.report.metric_names import axis_label
from pipeline.report.published_numbers import Published
from pipeline.run_folder.results import Row, seconds_per_image, steady_batch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "teacher": ("the teacher", "s"),
    "student": ("the student", "o"),
    "pre-trained": ("student, with the teacher in between", "D"),
    "onestep*": ("positions independent", "X"),
}
"""What a method's name begins with, in words, with a marker; of other methods no time is measured."""
METRIC = "frechet_distance"
MARK = 4.0
"""Pixels from a marker's middle to its edge."""
NAME_POINTS, LINE_HEIGHT = 7, 1.6
"""Size of names, and the room of a line of them, in sizes."""


class Point(NamedTuple):
    """A method: milliseconds an image at steady state, and its distance."""

    name: str
    kind: str
    milliseconds: float
    distance: float


def points(rows: Sequence[Row]) -> list[Point]:
    """The methods of an evaluation that have both numbers."""
    batch = steady_batch(rows)
    found = []
    for row in rows:
        seconds = None if batch is None else seconds_per_image(row, batch)
        kind, distance = kind_of(row["method"]), row.get(METRIC)
        if seconds and distance is not None and kind:
            found.append(Point(row["method"], kind, 1e3 * seconds, distance))
    return found


def kind_of(method: str) -> str | None:
    """Which of `KINDS` a method is."""
    return next((kind for kind in KINDS if method.startswith(kind)), None)


@style()
def quality_against_time(rows: Sequence[Row], protocol: str, published: Sequence[Published] = ()) -> Figure:
    """Frechet distance over milliseconds an image, both logarithmic; what the paper prints is hollow.

    Args:
        rows: of an evaluation, one method or more with `points`.
        protocol: its name, for the axis.
        published: rows about the same teacher.
    """
    ours = points(rows)
    theirs = [
        Point(one.method, kind, 1e3 * one.seconds_per_image, one.frechet_distance)
        for one in published
        if one.seconds_per_image and not one.is_later and (kind := kind_of(one.method))
    ]
    figure, axes = new_figure(
        f"milliseconds an image, in batches of {steady_batch(rows)}", axis_label(METRIC, protocol)
    )
    handles = []
    for index, (kind, (words, marker)) in enumerate(KINDS.items()):
        colour = SETTING_COLOURS[index]
        for shown, face in ((ours, colour), (theirs, "none")):
            own = [point for point in shown if point.kind == kind]
            if not own:
                continue
            (drawn,) = axes.plot(
                [point.milliseconds for point in own],
                [point.distance for point in own],
                marker,
                color=colour,
                markerfacecolor=face,
                markersize=6,
                zorder=3,
            )
            handles.append((drawn, words if face == colour else f"published: {words}"))
    everything = [*ours, *theirs]
    for axis, set_scale, set_limits, values in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim, [point.milliseconds for point in everything]),
        (axes.yaxis, axes.set_yscale, axes.set_ylim, [point.distance for point in everything]),
    ):
        low, high = min(values), max(values)
        # A distance may round to less than nothing, which no logarithm has.
        scale(axis, set_scale, set_limits, low, high, logarithmic=low > 0)
    head(figure, "", handles)
    _name_points(figure, axes, ours, theirs)
    return figure


def _name_points(figure: Figure, axes: Axes, named: Sequence[Point], others: Sequence[Point]) -> None:
    """Each name beside its point, or a little away with a line to it: where no other name and no point is."""
    # Only what was laid out once knows where its points lie.
    figure.draw_without_rendering()
    places = axes.transData.transform([(point.milliseconds, point.distance) for point in (*named, *others)])
    taken = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in places]
    within = Box(*axes.get_window_extent().extents)
    height = NAME_POINTS * LINE_HEIGHT * figure.dpi / 72
    for index, point in enumerate(named):
        (x, y), width = places[index], 0.4 * height * len(point.name)
        free = [
            (across, rise * height)
            for rise in (0, 1, -1, 2, -2, 3, -3, 4, -4)
            for across in ((1, -1) if rise == 0 else (1, -1, 0))
            if (box := Box.beside(x, y + rise * height, across, width, height)).lies_in(within)
            and not any(box.meets(other) for other in taken)
        ]
        across, up = free[0] if free else (0, height)
        taken.append(Box.beside(x, y + up, across, width, height))
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
    """A rectangle on the paper, in pixels."""

    left: float
    low: float
    right: float
    high: float

    @classmethod
    def beside(cls, x: float, y: float, across: int, width: float, height: float) -> Box:
        """That of a name at a point: to its right (1), to its left (-1), or over it (0)."""
        start = {1: x + 2 * MARK, -1: x - 2 * MARK - width, 0: x - width / 2}[across]
        return cls(start, y - height / 2, start + width, y + height / 2)

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.low < other.high
            and other.low < self.high
        )

    def lies_in(self, other: Box) -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.low <= self.low
            and self.high <= other.high
        )
