"""The README and docs/: their commands run, their links resolve, and each page is of one kind."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]
KINDS = {"tutorial", "how-to", "reference", "explanation"}
WRAPPERS = {"index.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
"""Pages of the site that only include others."""

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^ *```$", re.M | re.S)
COMMAND = re.compile(r"^ *(tokenleap|pip|pytest|python|torchrun|git|sbatch|dask|\.ci/run)\b", re.M)
MARK = re.compile(r"<!-- not run: \S.* -->$")
COPIES = {"first-student": {"pairs": "runs/digits/pairs", "student": "runs/digits/student", "runs/mine": "runs/digits"}}
"""Results of commands that are not run, by page: copies of small ones."""

FILES = {"labels.txt": "3\n7\n"}
"""Files that commands read and the reader writes."""


@dataclass(frozen=True)
class Block:
    """A fenced block with commands."""

    page: Path
    line: int
    language: str
    text: str
    is_marked: bool

    @property
    def commands(self) -> list[str]:
        """Its commands without comments; continued lines are joined."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text("utf-8")
        for fence in FENCE.finditer(text):
            if fence["language"] in {"python", "toml", "json", "text"} or not COMMAND.search(fence["text"]):
                continue
            before = text[: fence.start()].rstrip()
            is_marked = MARK.search(before) is not None
            yield Block(page, text[: fence.start()].count("\n") + 1, fence["language"], fence["text"], is_marked)


BLOCKS = list(blocks())
RUN = [block for block in BLOCKS if not block.is_marked]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_commands_are_in_blocks_of_the_shell(block: Block) -> None:
    assert block.language == "sh", "give the language sh; text is for output"


def test_enough_commands_are_run() -> None:
    assert sum(len(block.commands) for block in RUN) >= 20


def run(command: str) -> None:
    result = CliRunner().invoke(main, shlex.split(command, comments=True))
    assert result.exit_code == 0, f"{command}\n{result.output}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, brief_timing: None) -> Path:
    """A folder with a small run of `digits` and a small student of `digits-text`, which pages name."""
    folder = tmp_path_factory.mktemp("finished")
    digits, text = folder / "runs" / "digits", folder / "runs" / "digits-text"
    for command in (
        f"run digits --out {digits} --num-pairs 1000 --num-steps 4 --workers 0 --set evaluation.num_images=100",
        f"generate digits-text --out {text}/pairs --num-pairs 1000 --workers 0",
        f"distill digits-text --pairs {text}/pairs --out {text}/student --num-steps 4",
    ):
        run(command)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("page", sorted({block.page for block in RUN}), ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for copy, original in COPIES.get(page.stem, {}).items():
        shutil.copytree(tmp_path / original, tmp_path / copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENLEAP_HOME", str(tmp_path / "home"))
    for block in RUN:
        for command in block.commands if block.page == page else ():
            program, _, arguments = command.strip().partition(" ")
            assert program == "tokenleap", f"{block}: mark it, or give it a test"
            run(arguments)


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = Path(os.path.normpath(page.parent / path)) if path else page
        assert other.exists(), target
        if anchor:
            assert anchor in slugs(other), target


def test_every_page_is_of_one_kind_and_the_readme_links_to_it() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS)
        assert name.parts[0] in KINDS or name.name in WRAPPERS | {"golden.md"}, name
        if name.name not in WRAPPERS | {"release.md"}:
            assert f"(docs/{name})" in readme, name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120
