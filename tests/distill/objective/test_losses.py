"""The three losses against their definitions, position by position, on a student of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config import TrainConfig
from distill.objective.losses import (
    BatchTargets,
    Losses,
    MicroBatch,
    decoder_inputs,
    squared_distance,
    student_losses,
)
from distill.objective.targets import Targets, trajectory_states
from distill.student.student import Student
from generate_pairs.teachers.checkpoints import load_teacher

pytestmark = pytest.mark.quick

WEIGHTS = {"token_weight": 2.0, "embedding_weight": 0.5, "image_weight": 3.0}


@pytest.fixture(scope="module")
def student(teacher_path: Path) -> Student:
    torch.manual_seed(0)
    student = Student.from_teacher(load_teacher(str(teacher_path)), (0, 2), 3, "", 1, initialise=True)
    # The continuous head starts near zero; make its loss visible.
    torch.nn.init.normal_(student.network.final_layer_conti.linear.weight, std=0.3)
    return student


@pytest.fixture(scope="module")
def batch(student: Student) -> tuple[Targets, Tensor, Tensor]:
    """Three pairs at timesteps 0, 2 and 2."""
    generator = torch.Generator().manual_seed(1)
    num_tokens = student.layout.num_tokens
    tokens_BL = torch.randint(24, (3, num_tokens), generator=generator)
    noise_BLC = torch.randn(3, num_tokens, 3, generator=generator)
    codebook_VC = student.tokenizer.codebook_VC
    targets = trajectory_states(noise_BLC, tokens_BL, torch.tensor([0, 2, 2]), codebook_VC, student.layout)
    return targets, tokens_BL, torch.tensor([1, 5, 9])


def losses_of(student: Student, batch: tuple[Targets, Tensor, Tensor], *image_distance: Any, **weights: float) -> Losses:
    batch_targets = BatchTargets.of(np.array([0, 2, 2]), student.layout)
    return student_losses(student, MicroBatch(*batch), batch_targets, TrainConfig(**weights), *image_distance)


def test_each_part_is_the_mean_over_its_targets(student: Student, batch: tuple[Targets, Tensor, Tensor]) -> None:
    targets, tokens_BL, labels_B = batch
    losses = losses_of(student, batch, **WEIGHTS)
    logits_BLV, embeddings_BLC = student(targets.states_BLC, targets.timestep_B, labels_B)
    codebook_VC = student.tokenizer.codebook_VC
    positions = [
        (sample, position)
        for sample, timestep in enumerate([0, 2, 2])
        for position in range(student.layout.starts[timestep], student.layout.num_tokens)
    ]
    token = torch.stack([-logits_BLV[at].log_softmax(-1)[tokens_BL[at]] for at in positions]).mean()
    distance = torch.stack([(embeddings_BLC[at] - codebook_VC[tokens_BL[at]]).square() for at in positions])
    sequence_BLC = codebook_VC[tokens_BL].clone()
    for at in positions:
        below_split = student.layout.step_of_token[at[1]] < student.split
        expected_row_C = logits_BLV[at].softmax(-1) @ codebook_VC
        sequence_BLC[at] = expected_row_C if below_split else embeddings_BLC[at]
    decode = student.tokenizer.decode
    image = F.mse_loss(decode(sequence_BLC), decode(codebook_VC[tokens_BL]))
    expected = {"token_loss": token, "embedding_loss": distance.mean(), "image_loss": image}
    shown_first = [sample == 0 for sample, _ in positions]
    for number, timestep in enumerate((0, 2)):
        of_it = torch.tensor(shown_first) == (number == 0)
        chosen = [at for at, is_of_it in zip(positions, of_it, strict=True) if is_of_it]
        expected[f"token_loss_at_{timestep}"] = torch.stack(
            [-logits_BLV[at].log_softmax(-1)[tokens_BL[at]] for at in chosen]
        ).mean()
        expected[f"embedding_loss_at_{timestep}"] = distance[of_it].mean()
    assert losses.parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses.parts[name], value, rtol=1e-5, atol=1e-7)
    total = 2.0 * token + 0.5 * distance.mean() + 3.0 * image
    torch.testing.assert_close(losses.total, total, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["token", "embedding", "image"])
def test_a_part_with_weight_zero_is_not_computed(
    student: Student, batch: tuple[Targets, Tensor, Tensor], name: str
) -> None:
    alone = {key: 1.0 if key == f"{name}_weight" else 0.0 for key in WEIGHTS}
    losses = losses_of(student, batch, **alone)
    at = [] if name == "image" else [f"{name}_loss_at_0", f"{name}_loss_at_2"]
    assert list(losses.parts) == [f"{name}_loss", *at]
    assert losses.total == losses.parts[f"{name}_loss"]


@pytest.mark.parametrize("name", ["token", "embedding", "image"])
def test_each_part_gives_gradients_to_the_heads_that_it_depends_on(
    student: Student, batch: tuple[Targets, Tensor, Tensor], name: str
) -> None:
    alone = {key: 1.0 if key == f"{name}_weight" else 0.0 for key in WEIGHTS}
    student.zero_grad()
    losses_of(student, batch, **alone).total.backward()
    # An image uses the token head below the split and the continuous head after it.
    image = {"tokens", "embeddings"} if student.split < student.layout.num_steps else {"tokens"}
    learning = {"token": {"tokens"}, "embedding": {"embeddings"}, "image": image}[name]
    continuous = list(student.network.final_layer_conti.parameters())
    token_head = [
        parameter
        for module in ("head", "output")
        if hasattr(student.network, module)
        for parameter in getattr(student.network, module).parameters()
    ]
    for head, parameters in (("tokens", token_head), ("embeddings", continuous)):
        assert parameters
        learned = [p.grad is not None and bool(p.grad.abs().max() > 0) for p in parameters]
        assert learned == [head in learning] * len(parameters)
    assert all(p.grad is None for p in student.tokenizer.parameters())


def test_decoder_inputs_are_the_certain_token_below_the_split_and_the_embedding_after_it(
    student: Student,
) -> None:
    tokens_BL = torch.arange(student.layout.num_tokens)[None] % 24
    logits_BLV = 1e4 * F.one_hot(tokens_BL, 24).float()
    embeddings_BLC = torch.randn(1, student.layout.num_tokens, 3)
    split = student.layout.starts[student.split]
    inputs_BLC = decoder_inputs(student, logits_BLV, embeddings_BLC)
    assert torch.equal(inputs_BLC[:, :split], student.tokenizer.embed(tokens_BL)[:, :split])
    assert torch.equal(inputs_BLC[:, split:], embeddings_BLC[:, split:])


def test_another_image_distance_replaces_the_squared_one(student: Student, batch: tuple[Targets, Tensor, Tensor]) -> None:
    weights = {"token_weight": 0.0, "image_weight": 1.0}
    plain = losses_of(student, batch, **weights)
    doubled = losses_of(student, batch, lambda a, b: 2.0 * squared_distance(a, b), **weights)
    torch.testing.assert_close(doubled.total, 2.0 * plain.total)
