"""Sampling: each image has its own noise; a second pass receives the first tokens of pass one, then noise."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distill.student.model import TokenSequence
from distill.student.sampler import sample_images, sample_sequence
from distill.student.student import Student
from generate_pairs.teachers.checkpoints import load_teacher
from shards.core.errors import Refused

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def student(teacher_path: Path) -> Student:
    torch.manual_seed(0)
    loaded = load_teacher(str(teacher_path))
    student = Student.from_teacher(loaded, (0, 2), loaded.teacher.layout.num_steps, "", 1, initialise=True)
    return student.eval().requires_grad_(False)


def test_the_second_pass_receives_data_then_the_same_noise(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    noise_BLC = torch.randn(2, student.layout.num_tokens, 3, generator=torch.Generator().manual_seed(0))
    labels_B = torch.tensor([4, 7])
    passes: list[tuple[torch.Tensor, int, TokenSequence]] = []
    finish = Student.finish

    def recorded(self: Student, states_BLC: torch.Tensor, timestep: int, labels_B: torch.Tensor) -> TokenSequence:
        passes.append((states_BLC, timestep, finish(self, states_BLC, timestep, labels_B)))
        return passes[-1][2]

    monkeypatch.setattr(Student, "finish", recorded)
    result = sample_sequence(student, noise_BLC, labels_B, (0, 2))
    (first_states, first_timestep, first), (states, timestep, second) = passes
    assert (first_timestep, timestep) == (0, 2)
    assert torch.equal(first_states, noise_BLC)
    start = student.layout.starts[2]
    assert torch.equal(states[:, :start], first.embeddings_BLC[:, :start])
    assert torch.equal(states[:, start:], noise_BLC[:, start:])
    assert result is second
    assert torch.equal(second.tokens_BL[:, :start], first.tokens_BL[:, :start])


def test_below_the_split_embeddings_are_codebook_rows(student: Student) -> None:
    noise_BLC = torch.randn(2, student.layout.num_tokens, 3, generator=torch.Generator().manual_seed(1))
    sequence = student.finish(noise_BLC, 0, torch.tensor([0, 1]))
    assert torch.equal(sequence.embeddings_BLC, student.tokenizer.embed(sequence.tokens_BL))


def test_an_image_is_the_same_in_any_batch(student: Student) -> None:
    labels = np.arange(10, dtype=np.int64)
    whole = next(iter(sample_images(student, labels, 5, (0, 2))))
    parts = list(sample_images(student, labels, 5, (0, 2), batch_size=4))
    assert [part.first for part in parts] == [0, 4, 8]
    assert torch.equal(torch.cat([part.tokens_BL for part in parts]), whole.tokens_BL)
    images = torch.cat([part.images_BIHW for part in parts])
    torch.testing.assert_close(images, whole.images_BIHW, rtol=0, atol=1e-5)
    assert whole.images_BIHW.min() >= 0
    assert whole.images_BIHW.max() <= 1


def test_another_seed_gives_other_images(student: Student) -> None:
    labels = np.zeros(4, dtype=np.int64)
    one, other = (next(iter(sample_images(student, labels, seed, (0,)))) for seed in (1, 2))
    assert not torch.equal(one.images_BIHW, other.images_BIHW)


@pytest.mark.parametrize("timesteps", [(), (1,), (0, 0), (0, 3, 2), (0, 40)])
def test_timesteps_that_do_not_ascend_inside_the_steps_are_refused(student: Student, timesteps: tuple[int, ...]) -> None:
    with pytest.raises(Refused, match=r"ascend from 0 and stay below .* trained at \[0, 2\]"):
        next(iter(sample_images(student, np.zeros(1, dtype=np.int64), 0, timesteps)))


def test_labels_outside_the_classes_are_refused(student: Student) -> None:
    with pytest.raises(Refused, match="label 10: this student has labels 0 to 9"):
        next(iter(sample_images(student, np.array([3, 10]), 0, (0,))))


def test_three_lines_of_python_sample_a_student(student: Student, tmp_path: Path) -> None:
    student.export(tmp_path)
    loaded = Student.from_pretrained(str(tmp_path))
    images = loaded.sample([3, 7, 3], steps=2, seed=4)
    assert (images.shape, images.dtype) == ((3, 1, 8, 8), torch.float32)
    expected = next(iter(sample_images(student, np.array([3, 7, 3]), 4, (0, 2)))).images_BIHW
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    assert torch.equal(images, loaded.sample((3, 7, 3), seed=4, timesteps=(0, 2)))
    assert loaded.sample([]).shape == (0, 1, 8, 8)
    with pytest.raises(Refused, match="3 steps: this student was trained at timesteps 0,2, 2 in all"):
        loaded.sample([1], steps=3)
    with pytest.raises(Refused, match="label 10"):
        loaded.sample([10])


def test_an_export_records_the_lineage_of_its_pairs(student: Student, tmp_path: Path) -> None:
    lineage = {"teacher": {"name": "digits", "sha256": "ab", "top_p": 1.0}, "flow_map": {"solver_steps": 8}}
    student.export(tmp_path / "unknown")
    assert Student.from_pretrained(tmp_path / "unknown").lineage is None
    student.lineage = lineage
    try:
        student.export(tmp_path / "known")
    finally:
        student.lineage = None
    known = Student.from_pretrained(tmp_path / "known")
    assert known.lineage == lineage
    shape = Student.load_without_weights(tmp_path / "known")
    assert shape.lineage == lineage
    assert {p.device.type for p in shape.network.parameters()} == {"meta"}
    assert (shape.num_classes, shape.layout, shape.timesteps) == (10, student.layout, (0, 2))
    one, other = (tmp_path / name / "student.safetensors" for name in ("known", "unknown"))
    assert one.read_bytes() == other.read_bytes()


class WithoutLogits(nn.Module):
    """A network without the optional method `logits`, as a plug-in may define."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.network(*inputs)


def test_unused_embeddings_are_not_computed(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    noise_BLC = torch.randn(4, student.layout.num_tokens, 3, generator=torch.Generator().manual_seed(1))
    labels_B = torch.arange(4)
    whole = copy.copy(student)
    whole.split = student.layout.num_steps
    other = copy.copy(whole)
    other._modules = {**whole._modules, "network": WithoutLogits(student.network)}
    expected = other.finish(noise_BLC, 0, labels_B).tokens_BL
    head = student.network.final_layer_conti
    monkeypatch.setattr(head, "forward", lambda *_: pytest.fail("the continuous head was called"))
    assert torch.equal(whole.finish(noise_BLC, 0, labels_B).tokens_BL, expected)


def test_with_noise_weight_zero_the_noise_has_no_effect(student: Student) -> None:
    logits_BLV = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    assert student.noise_weight == 0
    assert torch.equal(student.choose_tokens(logits_BLV, torch.full((2, 3, 3), 1e6)), logits_BLV.argmax(-1))


def test_noise_decides_between_tokens_that_are_equally_likely(student: Student) -> None:
    """Of two equally likely rows, the one further in the direction of the noise is chosen, as in the flow map."""
    codebook_VC = student.tokenizer.codebook_VC
    logits_BLV = torch.full((1, 2, 24), -1e4)
    logits_BLV[..., [3, 17]] = 0.0
    direction_C = codebook_VC[3] - codebook_VC[17]
    noise_BLC = torch.stack([direction_C, -direction_C])[None]
    weighted = with_noise_weight(student, 0.5)
    assert weighted.choose_tokens(logits_BLV, noise_BLC).tolist() == [[3, 17]]
    log_odds = 0.5 * direction_C.square().sum() / codebook_spread(codebook_VC)
    for sure, token in ((0.99, 3), (1.01, 17)):
        logits_BLV[0, 0, 17] = sure * log_odds
        assert weighted.choose_tokens(logits_BLV, noise_BLC)[0, 0] == token


def test_the_noise_weight_is_in_units_of_the_codebook_spread(student: Student) -> None:
    generator = torch.Generator().manual_seed(1)
    logits_BLV = torch.randn(4, student.layout.num_tokens, 24, generator=generator)
    noise_BLC = torch.randn(4, student.layout.num_tokens, 3, generator=generator)
    labels_B = torch.zeros(4, dtype=torch.int64)
    plain = student.finish(noise_BLC, 0, labels_B).tokens_BL
    moved = with_noise_weight(student, 2.0)
    chosen = moved.choose_tokens(logits_BLV, noise_BLC)
    rows_VC = student.tokenizer.codebook_VC
    expected = (logits_BLV + 2.0 * (noise_BLC @ (rows_VC / codebook_spread(rows_VC)).T)).argmax(-1)
    assert torch.equal(chosen, expected)
    assert not torch.equal(moved.finish(noise_BLC, 0, labels_B).tokens_BL, plain)


def test_the_export_contains_the_noise_weight(student: Student, tmp_path: Path) -> None:
    with_noise_weight(student, 0.25).export(tmp_path)
    assert Student.from_pretrained(tmp_path).noise_weight == 0.25


def test_every_pass_uses_the_noise_weight_of_its_timestep(student: Student, tmp_path: Path) -> None:
    assert student.timesteps == (0, 2)
    several = with_noise_weight(student, (0.5, 2.0))
    assert [several.noise_weight_at(timestep) for timestep in (0, 1, 2, 3)] == [0.5, 0.5, 2.0, 2.0]
    noise_BLC = torch.randn(4, student.layout.num_tokens, 3, generator=torch.Generator().manual_seed(1))
    labels_B = torch.zeros(4, dtype=torch.int64)
    one, other = with_noise_weight(student, 0.5), with_noise_weight(student, 2.0)
    first = one.finish(noise_BLC, 0, labels_B)
    start = student.layout.starts[2]
    states_BLC = torch.cat([first.embeddings_BLC[:, :start], noise_BLC[:, start:]], dim=1)
    expected = other.finish(states_BLC, 2, labels_B).tokens_BL
    assert not torch.equal(expected, one.finish(states_BLC, 2, labels_B).tokens_BL)
    assert torch.equal(sample_sequence(several, noise_BLC, labels_B, (0, 2)).tokens_BL, expected)
    several.export(tmp_path)
    assert Student.from_pretrained(tmp_path).noise_weight == (0.5, 2.0)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"noise_weight": [1.0, 1.0, 1.0]}))
    with pytest.raises(Refused, match="has 3 numbers for 2 timesteps"):
        Student.from_pretrained(tmp_path)


def with_noise_weight(student: Student, noise_weight: float | tuple[float, ...]) -> Student:
    """A copy with another noise weight."""
    other = copy.copy(student)
    other.noise_weight = noise_weight
    return other


def codebook_spread(codebook_VC: torch.Tensor) -> torch.Tensor:
    """Root mean square distance of rows from their mean."""
    return (codebook_VC - codebook_VC.mean(0)).norm(dim=1).square().mean().sqrt()
