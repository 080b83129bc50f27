"""Compute precision, the dtypes of stored state, and deterministic kernels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.student.student import Student
from distill.training.metrics import read_metrics
from distill.training.precision import deterministic_kernels
from shards.core.errors import Refused


@pytest.fixture
def losses_of(run: Any) -> Callable[..., np.ndarray]:
    """Trains, by default without decoding images, and returns the loss of every step."""

    def losses(out: Path, **settings: Any) -> np.ndarray:
        run(out, **{"checkpoint_interval": 1_000, "log_interval": 1, "image_weight": 0.0, **settings})
        return read_metrics(out / "metrics")["loss"].to_numpy()

    return losses


def dtypes(path: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(path).values()}


@pytest.mark.parametrize(
    ("precision", "kept"),
    [("bfloat16", torch.float32), ("float64", torch.float64)],
    ids=["bfloat16", "float64"],
)
def test_training_learns_keeps_its_state_in_full_precision_and_exports_float32(
    losses_of: Any, tmp_path: Path, precision: str, kept: torch.dtype
) -> None:
    settings = {"num_steps": 60, "learning_rate": 5e-3, "precision": precision}
    losses = losses_of(tmp_path, **settings)
    assert losses[-10:].mean() < 0.75 * losses[:10].mean()
    state = load_file(tmp_path / "checkpoints" / "step-000060.safetensors")
    names = {name.split(".")[0] for name in state}
    assert names == {"weights", "averages", "optimizer"}
    assert {tensor.dtype for name, tensor in state.items() if "optimizer.step" not in name} == {kept}
    assert dtypes(tmp_path / "student.safetensors") == {torch.float32}
    assert dtypes(tmp_path / "tokenizer.safetensors") == {torch.float32}
    student = Student.from_pretrained(tmp_path)
    for name, tensor in student.network.state_dict().items():
        if (average := state.get(f"averages.{name}")) is not None:
            assert torch.equal(tensor, average.float())


def test_bfloat16_rounds_and_float32_does_not(losses_of: Any, tmp_path: Path) -> None:
    """The first losses are computed from equal weights and include decoded images."""
    exact, single, half = (
        losses_of(tmp_path / precision, num_steps=1, image_weight=0.1, precision=precision)[0]
        for precision in ("float64", "float32", "bfloat16")
    )
    assert single == pytest.approx(exact, rel=1e-5)
    assert half == pytest.approx(exact, rel=3e-2)
    assert abs(half - exact) > 100 * abs(single - exact)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))),
    reason="torch.compile needs a C++ compiler on a CPU",
)
def test_a_compiled_network_has_the_same_losses(losses_of: Any, tmp_path: Path) -> None:
    plain, compiled = (losses_of(tmp_path / str(value), num_steps=5, compile=value) for value in (False, True))
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)
    names = [load_file(tmp_path / str(value) / "student.safetensors").keys() for value in (False, True)]
    assert names[0] == names[1]


@pytest.mark.parametrize("before", [False, True])
def test_deterministic_kernels_restores_the_setting(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    original = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(before)
        with deterministic_kernels(False):
            assert torch.are_deterministic_algorithms_enabled() == before
        with pytest.raises(ValueError, match="within"), deterministic_kernels(True):
            assert torch.are_deterministic_algorithms_enabled()
            raise ValueError("within")
        assert torch.are_deterministic_algorithms_enabled() == before
    finally:
        torch.use_deterministic_algorithms(original)


def test_a_deterministic_training_is_the_same_on_a_cpu(losses_of: Any, tmp_path: Path) -> None:
    losses = [losses_of(tmp_path / str(value), num_steps=3, deterministic=value) for value in (False, True)]
    assert (losses[0] == losses[1]).all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_is_refused_by_its_name() -> None:
    numbers = torch.zeros(3)

    def put() -> None:
        numbers.put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))

    with deterministic_kernels(False):
        put()
    with (
        pytest.raises(Refused, match=r"^train\.deterministic: put_ has no .* on this device: set it to false"),
        deterministic_kernels(True),
    ):
        put()
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another"), deterministic_kernels(True):
        raise RuntimeError("another")
