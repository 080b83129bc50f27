"""The kernel gives the tokens of the flow map in the same number of steps, in triton's interpreter on a CPU.

tests/test_gpu.py and test_flow_map.py compare a GPU with the CPU (`pytest -m gpu`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from generate_pairs.flow_map import flow_map as module
from generate_pairs.flow_map.flow_map import FlowMap, MappedTokens
from shards.core.errors import Failed

HERE = Path(__file__).resolve().parent
OLDEST = (3, 7)
"""Older interpreters do not work with current numpy."""


@pytest.mark.parametrize(
    ("has_triton", "compiler", "has_headers", "missing"),
    [
        (True, "gcc", True, None),
        (True, "clang", True, None),
        (True, None, True, "a C compiler"),
        (True, "gcc", False, "Python's headers"),
        (False, "gcc", True, "the package triton"),
    ],
)
def test_a_missing_requirement_of_the_kernel_is_reported_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    has_triton: bool,
    compiler: str | None,
    has_headers: bool,
    missing: str | None,
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(module, "find_spec", lambda _: "spec" if has_triton else None)
    monkeypatch.setattr("shutil.which", lambda name: name if name == compiler else None)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    if has_headers:
        (tmp_path / "Python.h").touch()
    module.kernel_is_possible.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert [module.kernel_is_possible() for _ in range(2)] == [missing is None] * 2
        assert [missing in str(each.message) for each in caught] == [True] * bool(missing)
    finally:
        module.kernel_is_possible.cache_clear()


class Mapped:
    """A map, rows for it, and a fake kernel that gives wrong tokens for the rows of `is_wrong_N`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = torch.Generator().manual_seed(0)
        self.flow_map = FlowMap(torch.randn(40, 3, generator=generator), 8)
        noise_NC, log_p_NV = (torch.randn(1_000, width, generator=generator) for width in (3, 40))
        # Every other row has only one possible token.
        log_p_NV[::2, 1:] = -torch.inf
        self.rows = noise_NC, log_p_NV, log_p_NV.amax(dim=1, keepdim=True)
        self.is_wrong_N = torch.zeros(1_000, dtype=torch.bool)
        self.num_stepped = 0
        self.by_steps = self.flow_map._by_steps
        monkeypatch.setattr(self.flow_map, "_by_steps", self._counted)

    def _counted(self, *arguments: object) -> MappedTokens:
        mapped = self.by_steps(*arguments)
        self.num_stepped += len(mapped.tokens_N)
        return mapped

    def __call__(self, first: int, stop: int) -> torch.Tensor:
        selected = slice(first, stop)
        rows = [tensor[selected] for tensor in self.rows]
        correct = self.by_steps(*rows, True)
        tokens_N = torch.where(self.is_wrong_N[selected], (correct.tokens_N + 1) % 40, correct.tokens_N)
        self.flow_map._by_kernel = lambda *_: MappedTokens(tokens_N, correct.num_evaluations_N)
        return self.flow_map._by_checked_kernel(*rows, True).tokens_N


def test_a_kernel_that_is_compiled_wrongly_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 compiled an earlier form of the kernel so that 40 of 100 tokens were wrong."""
    mapped = Mapped(monkeypatch)
    mapped.is_wrong_N[[1, 13, 25]] = True
    mapped(0, 10)
    mapped(10, 30)
    mapped.is_wrong_N[31] = True
    with pytest.raises(Failed, match="gives other tokens than its single steps, 4 in the first 16: triton compiles"):
        mapped(30, 32)


def test_the_kernel_is_checked_on_enough_rows_with_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKED_ROWS", 100)
    mapped = Mapped(monkeypatch)
    for first, expected in ((0, 40), (40, 80), (80, 120), (120, 160), (160, 180), (180, 190)):
        mapped(first, first + 40)
        assert mapped.num_stepped == expected, "half of the rows have a choice"
    mapped(0, 500)
    mapped.flow_map.to("cpu")
    mapped(0, 40)
    assert mapped.num_stepped > 200


def test_a_kernel_that_cannot_be_built_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = Mapped(monkeypatch)

    def fail(*_: object) -> MappedTokens:
        raise RuntimeError("PTX was compiled for sm_90\nand more")

    monkeypatch.setattr(mapped.flow_map, "_by_kernel", fail)
    with pytest.raises(
        Failed, match=r"cannot be built \(PTX was compiled for sm_90\)\. Install another version of triton"
    ):
        mapped.flow_map._by_checked_kernel(*mapped.rows, True)


def test_the_kernel_gives_the_same_tokens_in_the_same_number_of_steps() -> None:
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        pytest.skip(f"triton {triton.__version__}: its interpreter needs an older numpy")
    process = subprocess.run(
        [sys.executable, str(HERE / "interpreted_map.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout)
    steps = results["no choice"]["steps"]
    assert steps[:2] == [0, 0], "only one possible token"
    assert 0 < steps[2] <= 8
    assert results["to the last step"]["steps"] == [8] * 4
    assert results["tied across tiles"]["taken"] == [3, 3]
    assert len(set(results["close together"]["taken"])) > 1
    for name, case in results.items():
        assert (case["tokens"], case["evaluations"]) == (0, 0), name
