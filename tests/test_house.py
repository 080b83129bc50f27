"""Rules of the source tree: small files, functions and folders, and no private words."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
PACKAGES = ("shards", "generate_pairs", "distill", "pipeline")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_FILES, MAX_LINES, MAX_FUNCTION_LINES = 12, 350, 60
PRIVATE_WORDS = re.compile(
    r"\b((?<!cannot )tells?|told|teller|judge|judges|judged|judge_\w+|mend|mends|mended|mending|mishap|whoever|somebody"
    r"|nobody|taught|look_interval|vouch\w*|founded|hand_out|HandOut)\b",
    re.IGNORECASE,
)
"""Words that once had a meaning of their own here; standard terms replace them,
except in `cannot tell`."""


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


def message_length(node: ast.AST) -> int:
    """The length of a message, where each inserted value counts as 20 characters."""
    match node:
        case ast.Constant(str(text)):
            return len(text)
        case ast.JoinedStr(values):
            return sum(map(message_length, values))
        case ast.BinOp(left, _, right):
            return message_length(left) + message_length(right)
        case ast.IfExp(_, body, other):
            return max(message_length(body), message_length(other))
    return 20


@pytest.mark.parametrize("path", FILES, ids=name)
def test_messages_are_short(path: Path) -> None:
    raised = [node.exc for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Raise)]
    messages = [call.args[0] for call in raised if isinstance(call, ast.Call) and call.args]
    assert [ast.unparse(message) for message in messages if message_length(message) > 400] == []


def test_the_rules_find_what_breaks_them() -> None:
    assert PRIVATE_WORDS.findall("Whoever was told vouches") == ["Whoever", "told", "vouches"]
    assert message_length(ast.parse("f'{path} is damaged'", mode="eval").body) == 20 + len(" is damaged")
    kernel, plain = ast.parse("@triton.jit\ndef kernel(): pass\ndef plain(): pass").body
    assert (is_kernel(kernel), is_kernel(plain)) == (True, False)
