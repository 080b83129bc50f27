"""docs/golden.md: its code runs unchanged and covers every kind of golden case."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def test_the_code_of_the_golden_page_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPOSITORY / "docs" / "golden.md").read_text("utf-8")
    monkeypatch.chdir(REPOSITORY)
    # The page puts a folder on the import path.
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests" / "golden"))
    names: dict[str, object] = {}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)):
        exec(compile(block, f"docs/golden.md, block {number}", "exec"), names)
    ratios = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert all(0 < float(ratio) <= 1 for ratio in ratios.values())
    kinds = {
        path.stem: spec["kind"]
        for path in (REPOSITORY / "tests" / "golden").glob("*.json")
        if "kind" in (spec := json.loads(path.read_text()))
    }
    assert {kinds[name] for name in ratios} == set(kinds.values())
