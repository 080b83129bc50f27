"""The kernel of the flow map takes the flow map's tokens in as many steps: by triton's interpreter, on a CPU.

What a GPU makes of it, tests/test_gpu.py and test_flow_map.py hold against a processor (`pytest -m gpu`).
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

from generate_pairs import flow_map as module
from generate_pairs.flow_map import FlowMap, MappedTokens
from shards.errors import Failed

HERE = Path(__file__).resolve().parent
OLDEST = (3, 7)
"""Interpreters before that do not get along with today's numpy."""


@pytest.mark.parametrize(
    ("has_triton", "compiler", "missing"),
    [(True, "gcc", None), (True, None, "a C compiler"), (False, "gcc", "the package triton")],
)
def test_what_the_kernel_needs_and_is_missing_is_told_once(
    monkeypatch: pytest.MonkeyPatch, has_triton: bool, compiler: str | None, missing: str | None
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(module, "find_spec", lambda _: "there" if has_triton else None)
    monkeypatch.setattr("shutil.which", lambda name: name if name == compiler else None)
    module.kernel_is_possible.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert [module.kernel_is_possible() for _ in range(2)] == [missing is None] * 2
        assert [missing in str(each.message) for each in told] == [True] * bool(missing)
    finally:
        module.kernel_is_possible.cache_clear()


def test_a_kernel_that_is_compiled_wrongly_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by triton 3.6, before the kernel was written around its fault: 40 of 100 tokens were others."""
    generator = torch.Generator().manual_seed(0)
    flow_map = FlowMap(torch.randn(40, 3, generator=generator), 8)
    noise_NC, log_p_NV = torch.randn(100, 3, generator=generator), torch.randn(100, 40, generator=generator)
    rows = noise_NC, log_p_NV, log_p_NV.amax(dim=1, keepdim=True), True
    right = flow_map._by_steps(*rows)

    def compiled(wrong: int) -> None:
        tokens_N = torch.cat([(right.tokens_N[:wrong] + 1) % 40, right.tokens_N[wrong:]])
        monkeypatch.setattr(
            flow_map, "_by_kernel", lambda *_: MappedTokens(tokens_N, right.num_evaluations_N)
        )

    compiled(wrong=3)
    for _ in range(2):
        with pytest.raises(Failed, match="other tokens than its single steps in 3 of the first 64 rows"):
            flow_map._by_checked_kernel(*rows)
    compiled(wrong=2)
    assert (flow_map._by_checked_kernel(*rows).tokens_N != right.tokens_N).sum() == 2
    monkeypatch.setattr(flow_map, "_by_steps", lambda *_: pytest.fail("checked once"))
    flow_map._by_checked_kernel(*rows)


def test_the_kernel_takes_the_same_tokens_in_as_many_steps() -> None:
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        pytest.skip(f"triton {triton.__version__}: its interpreter needs an older numpy")
    ended = subprocess.run(
        [sys.executable, str(HERE / "interpreted_map.py")],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": str(HERE.parents[1]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    steps = found["no choice"]["steps"]
    assert steps[:2] == [0, 0], "nothing to choose"
    assert 0 < steps[2] <= 8
    assert found["to the last step"]["steps"] == [8] * 4
    assert found["tied across tiles"]["taken"] == [3, 3]
    assert len(set(found["close together"]["taken"])) > 1
    for name, case in found.items():
        assert (case["tokens"], case["evaluations"]) == (0, 0), name
