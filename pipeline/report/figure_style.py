"""What all figures share: paper, style, scales, legend and files.

Drawn with matplotlib's `Figure` alone, never with pyplot: no window system, no global state, and the same bytes each
time. matplotlib is imported where something is drawn, and not before: `tokenleap --help` has no use for it.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH, HEIGHT, LINE = 4.4, 3.2, 0.18
"""Inches: a column and a half of a paper, and a phone's width at the size of its text; a line above the axes adds."""
DOTS_PER_INCH = 200
HASH_SALT = "onestep"
"""Seeds the element names in SVG files; it carries the project's first name, so that figures keep their bytes."""
CHARACTERS = 56
"""That many fit side by side."""
LOG_RATIO = 8
"""Values that span more than this ratio get a logarithmic axis."""
INK, QUIET, RULE = "#1d1f21", "#55595d", "#d9dbd6"


class Drawn(NamedTuple):
    """A figure's two files."""

    png: bytes
    svg: bytes


@contextmanager
def style() -> Iterator[None]:
    """matplotlib as it comes, whatever the reader's own matplotlibrc says, but for our own few settings."""
    import matplotlib

    ours: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": QUIET,
        "axes.labelcolor": INK,
        "axes.axisbelow": True,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "text.color": INK,
        # Names come from people, and a dollar sign is no formula there.
        "text.parse_math": False,
        "svg.fonttype": "path",
        "svg.hashsalt": HASH_SALT,
    }
    # Resetting the backend would look for a window system.
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
    with matplotlib.rc_context(defaults | ours):
        yield


@style()
def draw(figure: Figure) -> Drawn:
    """A figure as PNG and SVG; the same bytes for the same figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Drawn(png.getvalue(), svg.getvalue())


def new_figure(across: str, up: str) -> tuple[Figure, Axes]:
    """An empty figure with the words at its two axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color=RULE, linewidth=0.6)
    axes.tick_params(length=3)
    return figure, axes


def scale_values(axes: Axes, values: Sequence[float], linear: bool) -> None:
    """A value axis that shows all values; logarithmic where they span much, unless it is to be linear."""
    if values:
        low, high = min(values), max(values)
        logarithmic = not linear and low > 0 and high / low > LOG_RATIO
        scale(axes.yaxis, axes.set_yscale, axes.set_ylim, low, high, logarithmic)


def scale_sizes(axes: Axes, sizes: Sequence[int], furthest: int) -> None:
    """A logarithmic axis with the sizes themselves as ticks, and where a law ends."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    margin = (furthest / sizes[0]) ** 0.06 if furthest > sizes[0] else 1.5
    axes.set_xlim(sizes[0] / margin, furthest * margin)
    # From the largest downwards, leaving out what would run into the tick beside it.
    ticks: list[int] = []
    for size in sorted({*sizes, furthest}, reverse=True):
        if not ticks or math.log(ticks[-1] / size) > math.log(furthest / sizes[0]) / 9:
            ticks.append(size)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: short_count(size)))


def short_count(count: float) -> str:
    """A count in few letters: `2,500`, `12.5k`, `1.2M`."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if count >= max(unit, 1e4):
            return f"{count / unit:.3g}{letter}"
    return f"{count:,.0f}"


def scale(
    axis: Axis,
    set_scale: Callable[..., Any],
    set_limits: Callable[..., Any],
    low: float,
    high: float,
    logarithmic: bool,
) -> None:
    """Limits with a margin; on a logarithmic axis ticks that people read, in plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if not logarithmic:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        set_limits(low - margin, high + margin)
        return
    set_scale("log")
    margin = (high / low) ** 0.04 if high > low else 1.5
    low, high = low / margin, high * margin
    set_limits(low, high)
    axis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _log_ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers in a range if there are any."""
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for digits in (range(1, 10), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{digit}e{power}") for power in decades for digit in digits]
        found = [tick for tick in ticks if low <= tick <= high]
        if len(found) <= 7:
            break
    if len(found) > 7:
        return found[:: -(-len(found) // 7)]
    return found if len(found) > 2 else [float(tick) for tick in MaxNLocator(5).tick_values(low, high)]


def head(figure: Figure, title: str, handles: Sequence[tuple[Any, str]]) -> None:
    """What stands above the axes: a title, and a legend of (drawn thing, name) in as many columns as fit."""
    title = textwrap.fill(title, CHARACTERS)
    names = [textwrap.fill(name, CHARACTERS) for _, name in handles]
    if not title and not names:
        return
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    rows = -(-len(names) // max(1, CHARACTERS // (longest + 5)))
    columns = -(-len(names) // rows) if rows else 1
    # The title is the legend's own, even of an empty one: two things at a figure's upper edge are laid over each other.
    figure.legend(
        [handle for handle, _ in handles],
        names,
        title=title or None,
        title_fontproperties={"weight": "bold", "size": 9},
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        alignment="left",
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0.1,
    )
    lines = rows * max((name.count("\n") + 1 for name in names), default=0) + (
        title.count("\n") + 1 if title else 0
    )
    figure.set_size_inches(WIDTH, HEIGHT + LINE * lines)


SETTING_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which people tell apart however they see colours; without the yellow, which paper swallows."""
MARKERS = "osD^vPX"
