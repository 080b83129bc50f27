"""The report of an ablation: files, and a page that contains everything, escapes names, and makes no request."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.ablation.back_test import BackTest
from pipeline.ablation.page import write_report_files
from pipeline.ablation.power_law import NoFit
from pipeline.ablation.table import AblationSetting, Series, final_values, summary_table, to_csv
from pipeline.report.figure_style import FigureFiles
from pipeline.report.html import data_url
from shards.core.errors import Refused

MakeTable = Callable[..., Any]
Write = Callable[..., Any]
ABOUT: dict[str, Any] = {
    "name": "sizes",
    "description": "How many pairs?",
    "match": "steps",
    "facts": [("pairs", "20,000")],
    "sentences": ["Twice the pairs lower nothing.", "Another sentence."],
    "unfinished": [],
    "config": "[train]\nnum_steps = 300\n",
}
SMALL: dict[str, Any] = {"sizes": (2500, 5000), "timesteps": ("0,8",), "methods": ("student-1",)}


def checked(law: Any, missed: Any = None) -> BackTest:
    """A law after its check, of which the page shows only the curve and the reason."""
    return BackTest(law, missed, None, (), ())


class Line:
    def at(self, size_N: Any) -> tuple[Any, Any, Any]:
        return size_N * 0 + 1.2, size_N * 0 + 1.1, size_N * 0 + 1.3


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not drawn as files, for tests that do not look at them."""
    monkeypatch.setattr("pipeline.ablation.page.draw", lambda figure: FigureFiles(b"png", b"svg"))


@pytest.fixture
def written(tmp_path: Path, parse_page: Callable[[str], Any]) -> Write:
    """Writes a report and parses its page."""

    def write(table: Any, laws: Any = None, folder: Path = tmp_path, **about: Any) -> Any:
        write_report_files(folder, table, {**ABOUT, **about}, laws or {})
        return parse_page((folder / "report.html").read_text())

    return write


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_page_contains_every_figure_and_makes_no_request(
    tmp_path: Path, written: Write, ablation_table: MakeTable
) -> None:
    page = written(ablation_table(**SMALL))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import", page.html)
    svgs = {path.read_bytes() for path in (tmp_path / "figures").glob("*.svg")}
    assert set(page.images) == {data_url("image/svg+xml", svg) for svg in svgs}
    # Four metrics by size, four by epoch, and the gap; a single setting has no figure by setting.
    assert len(page.images) == len(svgs) == 9
    for svg in svgs:
        assert not re.search(rb'href="(?!#)|url\((?!#)|<image|<script', svg)
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {
        path.stem for path in (tmp_path / "figures").glob("*.svg")
    }
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


@pytest.mark.usefixtures("undrawn")
def test_sections_are_in_order(written: Write, ablation_table: MakeTable) -> None:
    page = written(ablation_table(**SMALL))
    order = [
        *("Twice the pairs lower nothing.", "Effect of more pairs", "Recall of student-1 (one step) against"),
        *("Final numbers", "During training", "by epoch, a line for each size", "Overfitting"),
        *("Cost", "20,000", "num_steps = 300"),
    ]
    places = [page.text.index(text) for text in order]
    assert places == sorted(places)
    assert "All cells train for the same number of steps" in page.text


@pytest.mark.usefixtures("undrawn")
def test_tables_are_equal_on_the_page_and_in_files(tmp_path: Path, written: Write, ablation_table: MakeTable) -> None:
    """Conclusions are on the page and below the table."""
    table = ablation_table(**SMALL)
    page = written(table)
    finals = final_values(table)
    sentences = ["", "- Twice the pairs lower nothing.", "- Another sentence."]
    assert (tmp_path / "table.md").read_text().splitlines() == [*summary_table(finals).markdown(), *sentences]
    assert (tmp_path / "table.csv").read_text() == to_csv(finals)
    # 1 + 1000 / 2500 + 10 / 300 + 0.005, and its standard deviation over two seeds 0.01 apart.
    assert page.cells[:4] == ["0,8", "2,500", "2", "1.4383 ± 0.0071"]
    assert "1.4383 ± 0.0071" in (tmp_path / "table.md").read_text()
    assert len(page.cells) == 2 * 8


def test_the_same_table_gives_the_same_bytes(tmp_path: Path, written: Write, ablation_table: MakeTable) -> None:
    for name in ("first", "second"):
        written(ablation_table(**{**SMALL, "methods": ()}), folder=tmp_path / name)
    assert files(tmp_path / "first") == files(tmp_path / "second")


@pytest.mark.usefixtures("undrawn")
def test_text_of_users_is_escaped(tmp_path: Path, written: Write, ablation_table: MakeTable) -> None:
    odd = "<b>$x$ & \"y\" 'z' \\ é"
    table = ablation_table(sizes=(2500,), seeds=1, timesteps=("0,8",), methods=(), swept={"train.odd": (odd,)})
    about = {"name": odd, "description": odd, "sentences": [odd], "facts": [(odd, odd)], "config": odd}
    page = written(table, unfinished=[(odd, odd)], **about)
    assert "<b>" not in page.html
    assert page.text.count(odd) >= 10
    assert odd in page.cells
    assert all(re.fullmatch(r"[A-Za-z0-9_.+-]+", name.name) for name in (tmp_path / "figures").iterdir())


@pytest.mark.usefixtures("undrawn")
def test_settings_with_equal_file_names_have_separate_figures(
    tmp_path: Path, written: Write, ablation_table: MakeTable
) -> None:
    swept = {"train.odd": ("a b", "a/b", "x" * 300, "x" * 301)}
    table = ablation_table(sizes=(2500,), seeds=1, timesteps=("0,8",), methods=(), swept=swept)
    page = written(table)
    assert len(page.images) == len(list((tmp_path / "figures").glob("*.svg"))) == 2 + 2 * (4 + 1) + 1


@pytest.mark.usefixtures("undrawn")
def test_the_reason_for_a_missing_law_is_printed(written: Write, ablation_table: MakeTable) -> None:
    table = ablation_table(sizes=(2500, 5000), methods=())
    first, second = (Series(AblationSetting(steps), None, "heldout_token_loss") for steps in ("0,4", "0,8"))
    reason = NoFit("two sizes are <too> few")
    page = written(table, {first: checked(reason), second: checked(Line())})
    assert "No law for timesteps 0,4: two sizes are <too> few." in page.text
    assert "A curve is a fitted power law" in page.text
    page = written(table, {first: checked(reason), second: checked(reason, missed=Line())})
    assert "No law: two sizes are <too> few. The faint dashed curve is the law of the smaller sizes." in page.text
    assert "A curve is a fitted power law" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_unfinished_cells_are_named_and_left_out(written: Write, ablation_table: MakeTable) -> None:
    table = ablation_table(**SMALL)
    page = written(table, unfinished=[("cell-1", "failed: out of memory")], match="epochs")
    assert "1 cell is not finished" in page.text
    assert "failed: out of memory" in page.text
    assert page.cells[:4] == ["0,8", "2,500", "1", "1.4333"]
    assert "All cells make the same number of passes over their pairs" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_page_is_written_without_finished_cells(written: Write, ablation_table: MakeTable) -> None:
    table = ablation_table(sizes=(2500,), seeds=1, timesteps=("0,8",))
    page = written(table, unfinished=[("cell-0", "running")])
    assert "No cell is finished yet." in page.text
    assert page.images == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("grid", [{"sizes": (2500,), "seeds": 1, "timesteps": ("0,8",)}, {**SMALL, "methods": ()}])
def test_one_cell_or_no_methods_give_a_page(written: Write, ablation_table: MakeTable, grid: dict[str, Any]) -> None:
    page = written(ablation_table(**grid))
    has_methods = "methods" not in grid
    assert ("Fréchet" in page.text) == has_methods
    assert ("the spread between seeds is unknown" in page.text) == (grid.get("seeds") == 1)
    assert len(page.images) == (13 if has_methods else 5)


@pytest.mark.usefixtures("undrawn")
def test_figures_of_an_earlier_grid_are_removed_and_other_files_stay(
    tmp_path: Path, written: Write, ablation_table: MakeTable
) -> None:
    written(ablation_table(**SMALL))
    (tmp_path / "figures" / "mine.png").write_bytes(b"kept")
    written(ablation_table(**{**SMALL, "methods": ()}))
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "mine.png" in names
    assert not [name for name in names if "student-1" in name]


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, written: Write, ablation_table: MakeTable) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(Refused, match="taken"):
        written(ablation_table(**{**SMALL, "methods": ()}), folder=tmp_path / "taken")
