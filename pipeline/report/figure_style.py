"""Common style of all figures: size, fonts, axes, legend and files.

Uses matplotlib's `Figure` and never pyplot: no window system, no global state, and reproducible bytes. matplotlib is
imported inside functions so that `tokenleap --help` does not load it.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, LINE = 4.4, 3.2, 0.2
"""Inches: width and height of a figure, and the height that each line above the axes adds."""
POINTS = 10
"""Size of all text: 11 pixels where a phone shows a figure 350 pixels wide."""
DOTS_PER_INCH = 200
HASH_SALT = "onestep"
"""Seed of the element names in SVG files. Changing it changes the bytes of every figure."""
CHARACTERS = 48
"""Characters of a legend that fit on one line."""
LABEL_CHARACTERS = 30
"""Characters that fit on one line along the value axis; a longer label has its unit on the next line."""
LOG_RATIO = 8
"""Values with a larger ratio of maximum to minimum get a logarithmic axis."""
INK, QUIET, RULE = "#1d1f21", "#55595d", "#d9dbd6"
SETTING_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito for colour-blind readers, without its yellow, which is too pale on white."""
MARKERS = "osD^vPX"


class FigureFiles(NamedTuple):
    """A figure's two files; the fields are the file names' suffixes."""

    png: bytes
    svg: bytes


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's default settings with the project's changes; the user's matplotlibrc has no effect."""
    import matplotlib

    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": POINTS,
        "axes.titlesize": POINTS,
        "axes.labelsize": POINTS,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": QUIET,
        "axes.labelcolor": INK,
        "axes.axisbelow": True,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "text.color": INK,
        # A dollar sign in a user's text does not start a formula.
        "text.parse_math": False,
        "svg.fonttype": "path",
        "svg.hashsalt": HASH_SALT,
    }
    # Resetting the backend would search for a window system.
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
    with matplotlib.rc_context(defaults | settings):
        yield


@style()
def draw(figure: Figure) -> FigureFiles:
    """Draw a figure as PNG and SVG; equal figures give equal bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return FigureFiles(png.getvalue(), svg.getvalue())


def new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty figure with labelled axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    is_long = max(map(len, y_label.split("\n"))) > LABEL_CHARACTERS
    axes.set_ylabel(y_label.replace(" (", "\n(") if is_long else y_label)
    axes.grid(color=RULE, linewidth=0.6)
    axes.tick_params(length=3)
    return figure, axes


def scale_values(axes: Axes, values: Sequence[float], linear: bool) -> None:
    """Scale the value axis to show all values: logarithmic above `LOG_RATIO`, unless `linear`."""
    if values:
        low, high = min(values), max(values)
        logarithmic = not linear and low > 0 and high / low > LOG_RATIO
        scale(axes, "y", low, high, logarithmic)


def scale_sizes(axes: Axes, sizes: Sequence[int], furthest: int) -> None:
    """Scale the size axis: logarithmic up to `furthest`, with ticks at the sizes and at `furthest`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    margin = (furthest / sizes[0]) ** 0.06 if furthest > sizes[0] else 1.5
    axes.set_xlim(sizes[0] / margin, furthest * margin)
    # From the largest downwards, without the ticks whose labels would overlap the previous one.
    ticks: list[int] = []
    for size in sorted({*sizes, furthest}, reverse=True):
        if not ticks or math.log(ticks[-1] / size) > math.log(furthest / sizes[0]) / 8:
            ticks.append(size)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: short_count(size)))


def short_count(count: float) -> str:
    """A count in few characters: `2,500`, `12.5k`, `1.2M`."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if count >= max(unit, 1e4):
            return f"{count / unit:.3g}{letter}"
    return f"{count:,.0f}"


def scale(axes: Axes, name: str, low: float, high: float, logarithmic: bool) -> None:
    """Set the limits of the axis "x" or "y" with a margin, and on a logarithmic axis round ticks in plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if not logarithmic:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set(**{f"{name}lim": (low - margin, high + margin)})
        return
    margin = (high / low) ** 0.04 if high > low else 1.5
    low, high = low / margin, high * margin
    axes.set(**{f"{name}scale": "log"})
    axes.set(**{f"{name}lim": (low, high)})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _log_ticks(low: float, high: float) -> list[float]:
    """Three to seven ticks in a range, at round numbers if the range has enough of them."""
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in (range(1, 10), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        candidates = [float(f"{digit}e{power}") for power in decades for digit in digits]
        ticks = [tick for tick in candidates if low <= tick <= high]
        if len(ticks) <= 7:
            break
    if len(ticks) > 7:
        return ticks[:: -(-len(ticks) // 7)]
    return ticks if len(ticks) > 2 else [float(tick) for tick in MaxNLocator(5).tick_values(low, high)]


def add_header(figure: Figure, title: str, handles: Sequence[tuple[Any, str]]) -> None:
    """Add a title and a legend of (artist, name) above the axes, in as many columns as fit."""
    title = textwrap.fill(title, CHARACTERS)
    names = [textwrap.fill(name, CHARACTERS) for _, name in handles]
    if not title and not names:
        return
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    rows = -(-len(names) // max(1, CHARACTERS // (longest + 5)))
    columns = -(-len(names) // rows) if rows else 1
    # The title belongs to the legend, even to an empty one: matplotlib draws a separate title over the legend.
    figure.legend(
        [handle for handle, _ in handles],
        names,
        title=title or None,
        title_fontproperties={"weight": "bold", "size": POINTS},
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=POINTS,
        alignment="left",
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0.1,
    )
    legend_lines = rows * max((name.count("\n") + 1 for name in names), default=0)
    title_lines = title.count("\n") + 1 if title else 0
    figure.set_size_inches(WIDTH, HEIGHT + LINE * (legend_lines + title_lines))
