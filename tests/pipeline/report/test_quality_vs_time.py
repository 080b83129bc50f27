"""Quality against time: the drawn methods, their positions, and names without overlaps."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from matplotlib.text import Text

from pipeline.report.figure_style import draw
from pipeline.report.published_numbers import published_rows
from pipeline.report.quality_vs_time import points, quality_against_time


def row(method: str, distance: float | None, seconds: float | None) -> dict[str, Any]:
    times = None if seconds is None else {"1": 10 * seconds, "64": seconds}
    return {"method": method, "frechet_distance": distance, "seconds_per_image": times}


ROWS = [
    row("real", 0.1, None),
    row("teacher", 0.09, 5.6e-4),
    row("teacher-flow", 0.089, 2.1e-3),
    row("student-1", 0.101, 1.4e-4),
    row("student-2", 0.103, 2.6e-4),
    row("pre-trained-1-9", 0.1, 4.4e-4),
    row("pre-trained-5-9", 0.1001, 4.2e-4),
    row("pre-trained-7-9", 0.1002, 4.1e-4),
    row("onestep*", 1.04, 3.2e-5),
    row("skip-4", 0.2, None),
]


def test_methods_with_both_numbers_are_drawn_at_the_largest_batch() -> None:
    drawn = {point.name: (point.milliseconds, point.distance) for point in points(ROWS)}
    assert drawn["student-1"] == (pytest.approx(0.14), 0.101)
    assert len(drawn) == 8
    assert {"real", "skip-4"}.isdisjoint(drawn)
    assert points([row("student-1", None, 0.1), row("teacher", 1.0, None)]) == []


def test_both_axes_are_logarithmic_and_have_labels() -> None:
    (axes,) = quality_against_time(ROWS, "digits").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == "milliseconds an image, in batches of 64"
    assert axes.get_ylabel() == "Fréchet distance\n(digits features)"


def test_every_name_is_drawn_without_overlaps() -> None:
    figure = quality_against_time(ROWS, "digits")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {point.name for point in points(ROWS)}
    # The extent of the text without the line to its point.
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_published_points_are_hollow_without_the_later_method() -> None:
    figure = quality_against_time(ROWS, "adm", published_rows("var-d16"))
    (axes,) = figure.axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    drawn = sorted(value for line in hollow for value in line.get_ydata())
    assert drawn == sorted([4.19, 9.94, 7.82, 5.03, 5.47, 6.54])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "published: the student" in names


def test_the_same_rows_give_the_same_bytes() -> None:
    first, second = (draw(quality_against_time(ROWS, "digits")).svg for _ in range(2))
    assert first == second
    assert ElementTree.fromstring(first).tag.endswith("svg")


def test_a_single_method_and_a_negative_distance_are_drawn() -> None:
    draw(quality_against_time([row("student-1", 3.0, 0.1)], "folder"))
    draw(quality_against_time([row("student-1", -1e-9, 0.1), row("teacher", 2.0, 0.3)], "folder"))
