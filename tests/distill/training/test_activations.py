"""Activation memory: estimates against what autograd saves, and activation checkpointing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distill.config import TrainConfig
from distill.objective.losses import BatchTargets, Losses, MicroBatch, student_losses
from distill.objective.targets import trajectory_states
from distill.student.student import Student
from distill.training.activations import checkpoint_layers, layer_stack
from distill.training.distributed import World
from distill.training.gradients import Gradients
from distill.training.memory import MemoryNeed
from distill.training.precision import Precision, autocast_for, weight_dtype
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from shards.core.errors import Refused

CPU = torch.device("cpu")


@pytest.fixture
def loaded(teacher_path: Path) -> LoadedTeacher:
    return load_teacher(str(teacher_path))


@pytest.fixture
def student(loaded: LoadedTeacher) -> Student:
    torch.manual_seed(0)
    return Student.from_teacher(loaded, (0, 2), 3, "", 1, initialise=True)


def random_batch(student: Student, pairs: int) -> tuple[MicroBatch, BatchTargets]:
    """Random pairs at timestep 0."""
    generator, codebook_VC = torch.Generator().manual_seed(1), student.tokenizer.codebook_VC
    tokens_BL = torch.randint(24, (pairs, student.layout.num_tokens), generator=generator)
    noise_BLC = torch.randn(pairs, student.layout.num_tokens, 3, generator=generator).to(codebook_VC.dtype)
    timestep_B = torch.zeros(pairs, dtype=torch.int64)
    targets = trajectory_states(noise_BLC, tokens_BL, timestep_B, codebook_VC, student.layout)
    return MicroBatch(targets, tokens_BL, torch.arange(pairs) % 10), BatchTargets.of(timestep_B.numpy(), student.layout)


def saved_bytes(student: Student, config: TrainConfig, pairs: int) -> int:
    """Bytes that autograd saves for the losses of a batch, without the student's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*student.parameters(), *student.buffers())}
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    micro_batch, batch_targets = random_batch(student, pairs)
    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        autocast_for(CPU, config.precision),
    ):
        losses = student_losses(student, micro_batch, batch_targets, config)
    del losses
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def marginal(student: Student, config: TrainConfig) -> float:
    """Saved bytes of one more pair; constant parts, such as bfloat16 weights, cancel out."""
    return (saved_bytes(student, config, 12) - saved_bytes(student, config, 4)) / 8


@pytest.mark.parametrize("image_weight", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_the_estimate_of_a_pair_is_what_autograd_saves(
    loaded: LoadedTeacher, student: Student, precision: Precision, image_weight: float
) -> None:
    config = TrainConfig(embedding_weight=0.1, image_weight=image_weight, precision=precision)
    student.to(dtype=weight_dtype(precision))
    estimate = MemoryNeed.of(loaded, config).per_pair
    # In bfloat16, the backward pass on a GPU needs more than autograd saves.
    factor = 1.2 if precision == "bfloat16" else 1.09
    assert 0.97 * marginal(student, config) < estimate < factor * marginal(student, config)


def test_a_checkpointed_layer_saves_only_its_input(loaded: LoadedTeacher, student: Student) -> None:
    config = TrainConfig(embedding_weight=0.1)
    plain = marginal(student, config)
    checkpoint_layers(student.network)
    layer_inputs = marginal(student, config)
    assert layer_inputs < 0.2 * plain
    # The backward pass recomputes one layer at a time: one of two.
    expected = layer_inputs + (plain - layer_inputs) / len(layer_stack(student.network))
    checkpointed = config.model_copy(update={"checkpoint_activations": True})
    estimate = MemoryNeed.of(loaded, checkpointed).per_pair
    assert 0.97 * expected < estimate < 1.12 * expected
    half = MemoryNeed.of(loaded, checkpointed.model_copy(update={"precision": "bfloat16"})).per_pair
    assert half == int(0.9 * estimate)


def test_checkpointing_layers_does_not_change_gradients(student: Student) -> None:
    student.double()
    config = TrainConfig(embedding_weight=0.5, image_weight=0.25)

    def computed() -> tuple[Losses, list[Tensor]]:
        gradients = Gradients(student, config, World(), 5)
        losses = gradients(*random_batch(student, 5))
        return losses, [parameter.grad for parameter in gradients.parameters]

    expected, expected_gradients = computed()
    checkpoint_layers(student.network)
    found, found_gradients = computed()
    torch.testing.assert_close(found.total, expected.total, rtol=1e-12, atol=0)
    for gradient, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12 * other.abs().max().item())


def test_checkpointing_layers_keeps_names_and_tensors(student: Student) -> None:
    before = {name: tensor.data_ptr() for name, tensor in student.network.state_dict().items()}
    checkpoint_layers(student.network)
    assert {name: tensor.data_ptr() for name, tensor in student.network.state_dict().items()} == before


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(Refused, match="need layers in a ModuleList, and Sequential has none"):
        layer_stack(nn.Sequential(nn.Linear(2, 2)))
