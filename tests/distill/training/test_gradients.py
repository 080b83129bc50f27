"""The gradient of a batch does not depend on the number of threads or the micro-batch size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.config import TrainConfig
from distill.objective.losses import BatchTargets, Losses, MicroBatch
from distill.objective.targets import trajectory_states
from distill.student.student import Student
from distill.training.distributed import World
from distill.training.gradients import Gradients
from generate_pairs.teachers.checkpoints import load_teacher


@pytest.fixture(scope="module")
def student(teacher_path: Path) -> Student:
    torch.manual_seed(0)
    return Student.from_teacher(load_teacher(str(teacher_path)), (0, 2), 3, "", 1, initialise=True).double()


def losses_of(student: Student, threads: int = 1, at_once: int = 5) -> tuple[Losses, list[Tensor | None]]:
    """Losses and gradients of five pairs, an odd number, at timesteps with different numbers of targets."""
    generator = torch.Generator().manual_seed(1)
    tokens_BL = torch.randint(24, (5, student.layout.num_tokens), generator=generator)
    noise_BLC = torch.randn(5, student.layout.num_tokens, 3, generator=generator, dtype=torch.float64)
    timestep_B = torch.tensor([0, 2, 2, 0, 2])
    targets = trajectory_states(noise_BLC, tokens_BL, timestep_B, student.tokenizer.codebook_VC, student.layout)
    config = TrainConfig(threads=threads, embedding_weight=0.5, image_weight=0.25)
    gradients = Gradients(student, config, World(), at_once)
    micro_batch = MicroBatch(targets, tokens_BL, torch.tensor([0, 1, 2, 3, 4]))
    losses = gradients(micro_batch, BatchTargets.of(timestep_B.numpy(), student.layout))
    return losses, [parameter.grad for parameter in gradients.parameters]


@pytest.mark.parametrize(("threads", "at_once"), [(2, 5), (3, 5), (8, 5), (1, 2), (1, 1), (2, 3)])
def test_threads_and_micro_batches_do_not_change_the_gradient(student: Student, threads: int, at_once: int) -> None:
    expected, expected_gradients = losses_of(student)
    found, found_gradients = losses_of(student, threads, at_once)
    torch.testing.assert_close(found.total, expected.total, rtol=1e-12, atol=0)
    heads = {f"{head}_loss{at}" for head in ("token", "embedding") for at in ("", "_at_0", "_at_2")}
    assert found.parts.keys() == {*heads, "image_loss"}
    for name, value in expected.parts.items():
        torch.testing.assert_close(found.parts[name], value, rtol=1e-12, atol=0)
    for found_gradient, gradient in zip(found_gradients, expected_gradients, strict=True):
        assert found_gradient is not None
        assert gradient is not None
        torch.testing.assert_close(found_gradient, gradient, rtol=1e-9, atol=1e-13)


def test_gradients_of_different_parameters_do_not_share_memory(student: Student) -> None:
    _, gradients = losses_of(student)
    addresses = [gradient.data_ptr() for gradient in gradients if gradient is not None]
    assert len(addresses) == len(set(addresses)) > 0
