"""Rules of the source tree: small files, functions and folders, and no private words."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shards", "generate_pairs", "distill", "pipeline")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_FILES, MAX_LINES, MAX_FUNCTION_LINES = 12, 350, 60
PRIVATE_WORDS = re.compile(
    r"\b(tells?|told|teller|judge|judges|judged|judge_\w+|mend|mends|mended|mending|mishap|whoever|somebody|nobody|taught"
    r"|look_interval|vouch\w*|founded|hand_out|HandOut)\b",
    re.IGNORECASE,
)
"""Words that once had a meaning of their own here; standard terms replace them."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("triton" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_folders_are_narrow() -> None:
    widths = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {name(folder): width for folder, width in widths.items() if width > MAX_FILES} == {}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= MAX_LINES
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, functions) and not is_kernel(node)
    }
    assert {function: length for function, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=name)
def test_words_are_standard(path: Path) -> None:
    assert PRIVATE_WORDS.findall(path.read_text("utf-8")) == []


def test_the_rules_find_what_breaks_them() -> None:
    assert PRIVATE_WORDS.findall("Whoever was told vouches") == ["Whoever", "told", "vouches"]
    kernel, plain = ast.parse("@triton.jit\ndef kernel(): pass\ndef plain(): pass").body
    assert (is_kernel(kernel), is_kernel(plain)) == (True, False)
