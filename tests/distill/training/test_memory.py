"""Memory estimates: the micro-batch size, and the message when a training does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from distill.config import TrainConfig
from distill.training.checkpoint import load_checkpoint
from distill.training.memory import USABLE_FRACTION, MemoryNeed, device_batch_size
from distill.training.metrics import read_metrics
from generate_pairs.teachers.checkpoints import load_teacher
from shards.core.errors import Refused, Stopped

GB = 10**9
SAVERS = ("train.precision=bfloat16", "train.checkpoint_activations=true")
NEED = MemoryNeed(GB, state=24 * GB, tokenizer=6 * GB, per_pair=GB, savers=SAVERS)


def free(usable: float) -> int:
    """Free memory of a device that allows `usable` gigabytes."""
    return int(usable * GB / USABLE_FRACTION) + 1


@pytest.mark.parametrize(
    ("pairs", "usable", "expected"),
    [
        (24, 54, 24),
        (24, 53.9, 12),
        (24, 41.9, 8),
        (24, 31, 1),
        (24, 30.9, 0),
        (7, 35, 4),
        (7, 33, 3),
    ],
)
def test_the_largest_equal_micro_batch_that_fits_is_used(pairs: int, usable: float, expected: int) -> None:
    assert NEED.fitting(pairs, free(usable)) == expected
    if expected:
        assert device_batch_size(NEED, pairs, "auto", free(usable)) == expected


def test_the_requested_size_is_used_up_to_the_number_of_pairs() -> None:
    assert device_batch_size(NEED, 24, 5, free(35)) == 5
    assert device_batch_size(NEED, 24, 100, free(54)) == 24


@pytest.mark.parametrize(
    ("requested", "usable", "total", "pairs", "advice"),
    [
        (24, 45, 54, 24, "train.device_batch_size=12 fits, and " + " or ".join(SAVERS) + " needs less"),
        ("auto", 20, 31, 1, " or ".join(SAVERS) + " needs less"),
    ],
    ids=["more than fits", "not even one pair fits"],
)
def test_the_refusal_states_what_is_needed_what_fits_and_what_needs_less(
    requested: int | str, usable: int, total: int, pairs: int, advice: str
) -> None:
    with pytest.raises(Refused) as refused:
        device_batch_size(NEED, 24, requested, free(usable))
    assert str(refused.value) == (
        f"this training does not fit: it needs {total}.0 GB a process: 24.0 GB for weights, gradients, averages and "
        f"optimizer of 1,000,000,000 parameters, 6.0 GB for the tokenizer, about {pairs}.0 GB for {pairs} pairs at once; "
        f"{usable}.0 GB can be used here: {advice}"
    )


def test_if_no_setting_needs_less_the_message_names_none() -> None:
    with pytest.raises(Refused, match=r"20\.0 GB can be used here: no other setting needs less$"):
        device_batch_size(replace(NEED, savers=()), 24, "auto", free(20))


@pytest.mark.parametrize(
    ("settings", "savers"),
    [
        ({}, SAVERS),
        ({"precision": "bfloat16"}, SAVERS[1:]),
        ({"checkpoint_activations": True}, ()),
        ({"checkpoint_activations": True, "precision": "bfloat16"}, ()),
        ({"checkpoint_activations": True, "precision": "float64"}, ("train.precision=float32",)),
    ],
)
def test_named_settings_are_not_set_yet_and_need_less(
    teacher_path: Path, settings: dict[str, object], savers: tuple[str, ...]
) -> None:
    loaded = load_teacher(str(teacher_path))
    need = MemoryNeed.of(loaded, TrainConfig(**settings))
    assert need.savers == savers
    for saver in savers:
        key, _, value = saver.removeprefix("train.").partition("=")
        other = MemoryNeed.of(loaded, TrainConfig(**{**settings, key: value}))
        assert other.total(8) < need.total(8), saver


def test_the_precision_determines_the_bytes_of_parameters_and_pairs(teacher_path: Path) -> None:
    loaded = load_teacher(str(teacher_path))
    single, half, double = (
        MemoryNeed.of(loaded, TrainConfig(precision=precision)) for precision in ("float32", "bfloat16", "float64")
    )
    assert single.state == 24 * single.num_parameters
    # With bfloat16, weights, averages and optimizer state stay float32; autocast stores a copy of the weights.
    assert half.state == 26 * half.num_parameters
    assert half.tokenizer == single.tokenizer
    assert half.per_pair < 0.7 * single.per_pair
    assert double == MemoryNeed(
        single.num_parameters, 2 * single.state, 2 * single.tokenizer, 2 * single.per_pair, double.savers
    )


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_a_training_in_micro_batches_equals_one_in_whole_batches(run: Any, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, num_steps=4, precision="float64")
    run(parts, num_steps=4, precision="float64", device_batch_size=7)
    expected, found = (read_metrics(out / "metrics")["loss"].to_pylist() for out in (whole, parts))
    assert found == pytest.approx(expected, rel=1e-11, abs=0)
    assert found != expected
    assert load_checkpoint(parts / "checkpoints", 4).state["device_batch_size"] == 7
    one, other = (load_file(out / "student.safetensors") for out in (whole, parts))
    for name, tensor in one.items():
        assert (other[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max()


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_auto_keeps_the_size_of_the_checkpoint_and_a_number_replaces_it(run: Any, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, device_batch_size=7, stop_after=3)
    run(tmp_path, num_steps=8, device_batch_size="auto", stop_after=8)
    kept = [load_checkpoint(tmp_path / "checkpoints", step).state["device_batch_size"] for step in (4, 8)]
    assert kept == [7, 7]
    run(tmp_path, num_steps=9, device_batch_size=5)
    assert load_checkpoint(tmp_path / "checkpoints", 9).state["device_batch_size"] == 5
