"""Checks before any work: settings that do not fit the teacher, or leave a head without a loss."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from distill.config import DistillConfig
from distill.lineage import load_teacher_of_pairs
from distill.training.preflight import check_distillation
from generate_pairs.teachers.base import TokenLayout
from shards.core.errors import Refused
from shards.dataset.manifest import Manifest

LAYOUT = TokenLayout((1, 4, 16))


def config(timesteps: tuple[int, ...] = (0,), split: int = 3, noise: object = 0, **train: object) -> DistillConfig:
    student = {"timesteps": timesteps, "split": split, "noise_weight": noise}
    return DistillConfig.model_validate({"student": student, "train": train})


@pytest.mark.parametrize(
    "accepted",
    [
        config(),
        config(timesteps=(0, 1, 2)),
        config(timesteps=(0, 1, 2), noise=(0.5, 0, 1)),
        config(split=1, embedding_weight=0.5),
        config(split=0, token_weight=0, embedding_weight=0.5),
        config(split=3, token_weight=0, image_weight=0.5),
    ],
)
def test_settings_with_a_loss_for_every_used_head_are_accepted(accepted: DistillConfig) -> None:
    check_distillation(accepted, LAYOUT, heldout=1)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (config(timesteps=(0, 3)), r"student\.timesteps: 3 is not below 3, the teacher's AR steps"),
        (
            config(noise=(0.5, 1)),
            r"noise_weight has 2 numbers for 1 timesteps: give one for each of them, or",
        ),
        (config(split=4, embedding_weight=1), r"student\.split: 4 is more than 3, the teacher's AR steps"),
        (config(split=0), r"student\.split is 0, so the continuous head .* set student\.split to 3, or"),
        (config(split=2, image_weight=1), "the continuous head makes the AR steps from there to 3"),
        (config(split=1, token_weight=0, embedding_weight=1), "the token head makes the first 1 AR steps"),
        (config(token_weight=0), r"set train\.token_weight above 0"),
        (config(split=0, token_weight=0), r"train\.embedding_weight above 0"),
    ],
)
def test_invalid_settings_are_refused_with_a_correction(refused: DistillConfig, message: str) -> None:
    with pytest.raises(Refused, match=message):
        check_distillation(refused, LAYOUT, heldout=1)


def test_a_training_needs_held_out_pairs() -> None:
    with pytest.raises(Refused, match=r"pairs\.num_heldout is 0"):
        check_distillation(config(), LAYOUT, heldout=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("betas", [0.9, 5]),
        ("betas", [-0.1, 0.9]),
        ("learning_rate", float("inf")),
        ("max_grad_norm", float("inf")),
        ("token_weight", float("nan")),
        ("threads", 100_000),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        config(**{key: value})


def test_a_teacher_that_did_not_generate_the_pairs_is_refused(pairs_root: Path, teacher_path: Path) -> None:
    manifest = Manifest.open(pairs_root)
    assert load_teacher_of_pairs(manifest, str(teacher_path)).sha256 == manifest.spec.lineage["teacher"]["sha256"]
    with pytest.raises(Refused, match=r"were made by teacher .* not by digits"):
        load_teacher_of_pairs(manifest, "digits")
