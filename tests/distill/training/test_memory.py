"""Memory estimates: the micro-batch size, and the message when a training does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from distill.config import DistillConfig, TrainConfig
from distill.training.checkpoint import load_checkpoint
from distill.training.memory import USABLE_FRACTION, MemoryNeed, device_batch_size
from distill.training.metrics import read_metrics
from distill.training.trainer import train
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


def test_more_than_fits_is_refused_with_what_fits_and_what_needs_less() -> None:
    with pytest.raises(Refused) as refused:
        device_batch_size(NEED, 24, 24, free(45))
    assert str(refused.value) == (
        "this training does not fit: it needs 54.0 GB a process: 24.0 GB for weights, gradients, averages and optimizer "
        "of 1,000,000,000 parameters, 6.0 GB for the tokenizer, about 24.0 GB for 24 pairs at once; 45.0 GB can be used "
        "here: train.device_batch_size=12 fits, and train.precision=bfloat16 or train.checkpoint_activations=true needs "
        "less"
    )


def test_if_not_even_one_pair_fits_the_message_is_about_one_pair() -> None:
    with pytest.raises(Refused) as refused:
        device_batch_size(NEED, 24, "auto", free(20))
    assert str(refused.value) == (
        "this training does not fit: it needs 31.0 GB a process: 24.0 GB for weights, gradients, averages and optimizer "
        "of 1,000,000,000 parameters, 6.0 GB for the tokenizer, about 1.0 GB for 1 pairs at once; 20.0 GB can be used "
        "here: train.precision=bfloat16 or train.checkpoint_activations=true needs less"
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


def settings(**train_settings: object) -> DistillConfig:
    base = {"num_steps": 8, "batch_size": 24, "warmup_steps": 2, "checkpoint_interval": 4, "log_interval": 1}
    return DistillConfig.model_validate(
        {
            "student": {"timesteps": [0, 2], "split": 3},
            "train": {**base, "embedding_weight": 0.1, "image_weight": 0.1, **train_settings},
        }
    )


def run(out: Path, teacher: Path, pairs: Path, config: DistillConfig, stop_after: int = 10**6) -> None:
    calls = iter(range(1, 10**6))
    train(
        config,
        str(teacher),
        pairs,
        out,
        size=96,
        report=lambda *_: None,
        should_stop=lambda: next(calls) >= stop_after,
    )


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_a_training_in_micro_batches_equals_one_in_whole_batches(
    teacher_path: Path, pairs_root: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, teacher_path, pairs_root, settings(num_steps=4, precision="float64"))
    run(parts, teacher_path, pairs_root, settings(num_steps=4, precision="float64", device_batch_size=7))
    expected, found = (read_metrics(out / "metrics")["loss"].to_pylist() for out in (whole, parts))
    assert found == pytest.approx(expected, rel=1e-11, abs=0)
    assert found != expected
    assert load_checkpoint(parts / "checkpoints", 4).state["device_batch_size"] == 7
    one, other = (load_file(out / "student.safetensors") for out in (whole, parts))
    for name, tensor in one.items():
        assert (other[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max()


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_auto_keeps_the_size_of_the_checkpoint_and_a_number_replaces_it(
    teacher_path: Path, pairs_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, teacher_path, pairs_root, settings(device_batch_size=7), stop_after=3)
    run(tmp_path, teacher_path, pairs_root, settings(num_steps=8, device_batch_size="auto"), stop_after=8)
    kept = [load_checkpoint(tmp_path / "checkpoints", step).state["device_batch_size"] for step in (4, 8)]
    assert kept == [7, 7]
    run(tmp_path, teacher_path, pairs_root, settings(num_steps=9, device_batch_size=5))
    assert load_checkpoint(tmp_path / "checkpoints", 9).state["device_batch_size"] == 5
