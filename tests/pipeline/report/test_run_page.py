"""The report: one file that contains everything, agrees with evaluation.json, and makes no request."""

from __future__ import annotations

import base64
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.config.run_config import compose
from pipeline.report.figure_style import draw
from pipeline.report.html import data_url
from pipeline.report.run_page import evaluation_tables, headlines, pictures, render, write_report
from pipeline.report.terminal_summary import result_lines
from pipeline.report.training_charts import MAX_POINTS, line_chart, training_charts
from pipeline.run_folder.results import read_results
from pipeline.run_folder.run_dir import RunDir, claim

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
ParsePage = Callable[[str], Any]
TEACHER = {"method": "teacher", "num_steps": 16, "frechet_distance": 1.25, "frechet_distance_std": 0.05}
STUDENT = {"method": "student-1", "num_steps": 1, "frechet_distance": 3.5, "token_match": 0.625}
ROWS: list[dict[str, Any]] = [
    {**TEACHER, "seconds_per_image": {"1": 0.08, "64": 0.004}, "decode_seconds_per_image": {"1": 0.008, "64": 0.001}},
    {**STUDENT, "seconds_per_image": {"1": 0.008, "64": 0.001}, "decode_seconds_per_image": {"1": 0.008, "64": 0.001}},
]
"""The student is 10 and 4 times as fast as its teacher, with decoding 5.5 and 2.5 times."""
TIMES = [
    *("teacher", "1.0× (1.0×)", "80.00 (88.00)", "1.0× (1.0×)", "4.00 (5.00)"),
    *("student-1", "10.0× (5.5×)", "8.00 (16.00)", "4.0× (2.5×)", "1.00 (2.00)"),
]


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    run_dir = claim(tmp_path / "wide & <bold>", compose("digits"))
    evaluation = {"protocol": "digits", "num_images": 2000, "seed": 0, "rows": ROWS}
    run_dir.evaluation.write_text(json.dumps(evaluation))
    run_dir.seconds.write_text(json.dumps({"pairs": 60.0, "student": 125.0}))
    run_dir.samples.mkdir()
    (run_dir.samples / "same-noise.png").write_bytes(PNG)
    log = {"step": [0, 50, 100], "loss": [4.0, 2.0, None], "learning_rate": [1e-3, 1e-3, 1e-3]}
    pyarrow.parquet.write_table(pyarrow.table(log), run_dir.metrics)
    return run_dir


def test_the_page_contains_its_images_and_makes_no_request(finished: RunDir, parse_page: ParsePage) -> None:
    write_report(finished)
    page = parse_page(finished.report.read_text())
    assert page.images[0] == data_url("image/png", PNG)
    # Quality against time, and the chart of the loss.
    for source in page.images[1:]:
        svg = base64.b64decode(source.removeprefix("data:image/svg+xml;base64,"))
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert len(page.images) == 3
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import", page.html)


def test_the_page_names_the_run_and_escapes_it(finished: RunDir, parse_page: ParsePage) -> None:
    page = parse_page(render(read_results(finished)))
    assert "<h1>wide &amp; &lt;bold&gt;</h1>" in page.html
    assert compose("digits").description in page.text


def test_the_page_agrees_with_evaluation_json(finished: RunDir, parse_page: ParsePage) -> None:
    page = parse_page(render(read_results(finished)))
    assert page.cells == [
        *("teacher", "1.250 ± 0.050", "–", "16"),
        *("student-1", "3.500", "0.625", "1"),
        *TIMES,
    ]
    assert "of one image at a time and of batches of 64, on cpu; in parentheses with decoding." in page.text
    assert "the student alone, in N steps" in page.text
    assert "share of tokens that are those of teacher-flow" in page.text
    assert "the tokenizer alone" not in page.text
    assert "Evaluated by protocol digits, 2,000 images, noise seed 0." in page.text
    assert "pairs 1 min 00 s, student 2 min 05 s, 3 min 05 s in all" in page.text
    assert f"guidance_scale = {compose('digits').teacher.guidance_scale}" in page.text


def test_without_scores_the_token_match_is_shown_instead(finished: RunDir, parse_page: ParsePage) -> None:
    rows = [{**row, "frechet_distance": None, "frechet_distance_std": None} for row in ROWS]
    evaluation = {"protocol": "samples", "num_images": 64, "seed": 0, "rows": rows}
    finished.evaluation.write_text(json.dumps(evaluation))
    results = read_results(finished)
    page = parse_page(render(results))
    assert page.cells == [
        *("teacher", "–", "16"),
        *("student-1", "0.625", "1"),
        *TIMES,
    ]
    assert headlines(results)[:3] == [
        ("10.0×", "one step against the teacher, an image at a time; 5.5× with decoding"),
        ("4.0×", "one step against the teacher, in batches of 64; 2.5× with decoding"),
        ("0.625", "token match, one step"),
    ]
    assert "Fréchet" not in page.text
    assert "Protocol samples, 64 images, noise seed 0." in page.text
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
        *("same-noise", "loss by training step")
    ]
    assert "it has no scores against real images" in page.text
    assert result_lines(results.evaluation) == [
        "method     token match  ms/image at 1  speed-up at 1  speed-up at 64",
        "teacher              -  80.00 (88.00)      1.0 (1.0)       1.0 (1.0)",
        "student-1        0.625   8.00 (16.00)     10.0 (5.5)       4.0 (2.5)",
        "Times and speed-ups over the teacher are of one image at a time and of batches of 64, on cpu; in parentheses "
        "with decoding.",
    ]


def test_evaluations_by_other_protocols_follow_if_they_are_of_the_same_student(
    finished: RunDir, parse_page: ParsePage
) -> None:
    evaluation = {"protocol": "adm", "num_images": 50_000, "seed": 0, "repeats": 2, "rows": ROWS}
    (finished.root / "evaluation-adm.json").write_text(json.dumps(evaluation))
    (finished.root / "evaluation-dd.json").write_text(json.dumps({**evaluation, "student_sha256": "another"}))
    page = parse_page(render(read_results(finished)))
    assert "Protocol adm, 50,000 images, noise seeds 0 to 1; mean ± sample standard deviation" in page.text
    assert page.cells.count("teacher") == 4
    assert "another" not in page.text


def test_the_page_says_what_real_images_are_compared_with_and_why_rows_are_missing(
    finished: RunDir, parse_page: ParsePage
) -> None:
    evaluation = json.loads(finished.evaluation.read_text())
    bare = {"reconstruction": "the teacher's tokenizer has no encoder"}
    real = {"real_images": 5_000, "real_against": "the batch's moments", "missing_rows": bare}
    finished.evaluation.write_text(json.dumps({**evaluation, **real}))
    other = {**evaluation, "protocol": "dd", "missing_rows": dict.fromkeys(("real", "reconstruction"), "no images")}
    (finished.root / "evaluation-dd.json").write_text(json.dumps(other))
    text = " ".join(parse_page(render(read_results(finished))).text.split())
    first, second = text.index("Protocol digits"), text.index("Protocol dd")
    assert first < text.index("real: 5,000 real images against the batch's moments.") < second
    assert first < text.index("No row reconstruction: the teacher's tokenizer has no encoder.") < second
    assert second < text.index("No rows real and reconstruction: no images.")


def test_the_distance_to_the_teacher_comes_before_the_distance_to_real_images(finished: RunDir) -> None:
    at_real = "frechet_distance_at_real_images"
    real = {"method": "real", "frechet_distance": 0.75, at_real: 0.75}
    rows = [
        real,
        {**ROWS[0], "teacher_distance": 0.125, at_real: 1.5},
        {**ROWS[1], "teacher_distance": 1.5, at_real: 4.0},
    ]
    evaluation = {"protocol": "digits", "num_images": 2000, "seed": 0, "teacher_images": 20_000, "rows": rows}
    evaluation |= {"real_images": 500, "real_against": "the training digits"}
    finished.evaluation.write_text(json.dumps(evaluation))
    results = read_results(finished)
    assert headlines(results)[2:] == [
        ("1.500", "Fréchet distance of one step to the teacher's own images; the teacher itself 0.125"),
        (
            "3.500",
            "Fréchet distance of one step to real images; teacher 1.250; "
            "with 500 images: one step 4.000, the teacher 1.500, real images 0.750",
        ),
        ("3 min 05 s", "for everything"),
    ]
    assert result_lines(results.evaluation, ("teacher",))[2:4] == [
        "Frechet distance to 20,000 of the teacher's own images: one step 1.500, the teacher itself 0.125.",
        "Frechet distance to real images with 500 images: one step 4.000, the teacher 1.500, real images 0.750.",
    ]


def test_without_the_teachers_images_only_the_distance_to_real_images_is_a_headline(finished: RunDir) -> None:
    assert headlines(read_results(finished))[2] == ("3.500", "Fréchet distance of one step to real images; teacher 1.250")


def test_empty_columns_are_left_out() -> None:
    scores, times = evaluation_tables(ROWS)
    assert scores.header == ("method", "Fréchet distance", "token match", "steps")
    assert times.header == (
        *("method", "speed-up, batch 1", "ms/image, batch 1", "speed-up, batch 64", "ms/image, batch 64"),
    )


def test_a_time_without_a_decoders_time_has_no_parentheses() -> None:
    rows = [{**row, "decode_seconds_per_image": None} for row in ROWS]
    _, times = evaluation_tables(rows)
    assert times.rows[1] == ("student-1", "10.0×", "8.00", "4.0×", "1.00")
    assert result_lines({"rows": rows})[-1].endswith("on cpu; without decoding.")


def test_a_time_that_is_null_is_missing() -> None:
    rows = [ROWS[0], {**ROWS[1], "seconds_per_image": {"1": None, "64": 0.001}}]
    _, times = evaluation_tables(rows)
    assert times.rows[1] == ("student-1", "–", "–", "4.0× (2.5×)", "1.00 (2.00)")


@pytest.mark.parametrize(("peak", "unit", "shown"), [(1.25e9, "GB", 1.25), (8.5e8, "MB", 850.0)])
def test_memory_is_drawn_in_its_unit(peak: float, unit: str, shown: float) -> None:
    (axes,) = line_chart("peak_memory_bytes", [(0, peak - 1e8), (50, peak)]).axes
    assert axes.get_ylabel().replace("\n", " ") == f"peak memory of a process ({unit})"
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(shown)


def test_constant_columns_are_not_drawn_and_missing_values_are_left_out(finished: RunDir) -> None:
    results = read_results(finished)
    assert results.metrics["loss"][:2] == [4.0, 2.0]
    assert math.isnan(results.metrics["loss"][2])
    ((title, url),) = training_charts(results.metrics)
    assert title == "loss"
    assert url in render(results)


def test_a_run_without_results_has_a_report(tmp_path: Path) -> None:
    html = render(read_results(claim(tmp_path / "run", compose("digits"))))
    assert "has not been evaluated yet" in html
    assert "<img" not in html


def test_the_same_run_gives_the_same_page(finished: RunDir) -> None:
    assert render(read_results(finished)) == render(read_results(finished))


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([3.0, 1.0, 2.0], "linear"),
        ([1e-6, 10.0, 1e-3], "log"),
        ([-1.0, 0.0, 5e3], "linear"),
        ([1.0, 1.0001, 1.0], "linear"),
        ([3.44, 2.6, 3.0], "linear"),
    ],
)
def test_a_chart_shows_all_values(values: list[float], scale: str) -> None:
    figure = line_chart("a_<_$b$", list(zip([0, 50, 100], values, strict=True)))
    (axes,), (legend,) = figure.axes, figure.legends
    (line,) = axes.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 50, 100], values)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", "a < $b$ (no unit)")
    assert axes.get_yscale() == scale
    assert legend.get_title().get_text() == "a < $b$" + (" (log)" if scale == "log" else "")
    low, high = axes.get_ylim()
    assert low < min(values)
    assert max(values) < high
    assert len([tick for tick in axes.get_yticks() if low <= tick <= high]) >= 2
    assert ElementTree.fromstring(draw(figure).svg).tag.endswith("svg")


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    points = [(float(step), float(step % 7)) for step in range(10_001)]
    (line,) = line_chart("loss", points).axes[0].lines
    assert MAX_POINTS / 2 < len(line.get_xdata()) <= MAX_POINTS
    assert (line.get_xdata()[-1], line.get_ydata()[-1]) == points[-1]


def test_pictures_are_in_the_order_of_the_table(finished: RunDir) -> None:
    for name in ("student-1", "comparison", "teacher"):
        (finished.samples / f"{name}.png").write_bytes(PNG)
    shown = [name for name, _ in pictures(read_results(finished))]
    assert shown == ["comparison", "teacher", "student-1", "same-noise"]
