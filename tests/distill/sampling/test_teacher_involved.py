"""pre-trained-N-M: names, the paper's counting, and the definition, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.sampling.method_spec import (
    TEACHER,
    TEACHER_FLOW,
    OnestepStar,
    PreTrained,
    SkipN,
    StudentAlone,
    default_pre_trained,
    parse_method,
)
from distill.sampling.methods import Methods
from distill.sampling.teacher_involved import sample_teacher_involved
from distill.student.student import Student
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.base import Teacher, TokenLayout
from generate_pairs.teachers.checkpoints import load_teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.trajectory import Draw, MapNoise, generate_tokens
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

VAR = TokenLayout(tuple(side**2 for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)))
LLAMAGEN = TokenLayout((1,) * 256)
SETTINGS = SamplingSettings(guidance_scale=1.5, top_k=20)


@pytest.mark.parametrize(
    ("name", "layout", "steps"),
    [
        ("pre-trained-1-6", VAR, 6),
        ("pre-trained-4-6", VAR, 4),
        ("pre-trained-5-6", VAR, 3),
        ("pre-trained-1-81", LLAMAGEN, 81),
        ("pre-trained-41-81", LLAMAGEN, 42),
        ("pre-trained-61-81", LLAMAGEN, 22),
        ("pre-trained-1-11", VAR, 10),
        ("pre-trained-3-11", VAR, 9),
        ("pre-trained-4-6-flow", VAR, 4),
    ],
)
def test_steps_are_counted_as_in_table_2(name: str, layout: TokenLayout, steps: int) -> None:
    method = parse_method(name, layout, (0,))
    assert (method.name, method.num_steps(layout)) == (name, steps)


@pytest.mark.parametrize(
    ("timesteps", "names"),
    [
        ((0, 5), ["1-6", "4-6", "5-6"]),
        ((0, 80), ["1-81", "41-81", "61-81"]),
        ((0, 8), ["1-9", "5-9", "7-9"]),
        ((0, 2), ["1-3", "2-3"]),
        ((0, 1), ["1-2"]),
        ((0,), []),
    ],
)
def test_the_default_methods_are_those_of_table_2(timesteps: tuple[int, ...], names: list[str]) -> None:
    assert [method.name for method in default_pre_trained(timesteps)] == [f"pre-trained-{name}" for name in names]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pre-trained-1-6-map", "write pre-trained-N-M or"),
        ("pre-trained-2", "write pre-trained-N-M or"),
        ("pre-trained-0-3", "AR steps, so 1 <= N < M <= 11"),
        ("pre-trained-3-3", "AR steps, so 1 <= N < M <= 11"),
        ("pre-trained-4-3", "AR steps, so 1 <= N < M <= 11"),
        ("pre-trained-2-12", "AR steps, so 1 <= N < M <= 11"),
        ("student-3", "3 steps: this student was trained at timesteps 0,5, 2 in all"),
        ("student-0", "0 steps"),
        ("student", "is no method to sample with: use student-K"),
        ("teacher-flow-2", "is no method to sample with"),
        ("onestep*", "is no method to sample with"),
        ("skip-2", "is no method to sample with"),
    ],
)
def test_methods_that_do_not_exist_are_refused(name: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        parse_method(name, VAR, (0, 5))


def test_parsing_a_name_gives_the_method_of_that_name() -> None:
    methods = (TEACHER, TEACHER_FLOW, StudentAlone((0,)), StudentAlone((0, 5)), PreTrained(2, 11, from_noise=True))
    assert [parse_method(method.name, VAR, (0, 5)) for method in methods] == list(methods)
    assert [method.num_steps(VAR) for method in methods] == [10, 10, 1, 2, 10]
    assert (OnestepStar().name, OnestepStar().num_steps(VAR)) == ("onestep*", 1)
    assert (SkipN(3).name, SkipN(3).num_steps(VAR)) == ("skip-3", 7)


@pytest.fixture(scope="module")
def teacher(teacher_path: Path) -> Teacher:
    return load_teacher(str(teacher_path)).teacher


@pytest.fixture(scope="module")
def student(teacher_path: Path) -> Student:
    """Its split is inside the sequence, so a prefix has to be snapped to codebook rows."""
    torch.manual_seed(0)
    loaded = load_teacher(str(teacher_path))
    student = Student.from_teacher(loaded, (0, 2), 1, "none", 1, initialise=True)
    return student.eval().requires_grad_(False)


def noise(teacher: Teacher, count: int) -> torch.Tensor:
    shape = (count, teacher.layout.num_tokens, teacher.codebook_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def test_without_a_prefix_the_teacher_starts_and_the_student_finishes(teacher: Teacher, student: Student) -> None:
    noise_BLC, labels_B = noise(teacher, 6), torch.arange(6)
    uniform_BL = torch.rand(6, teacher.layout.num_tokens, dtype=torch.float64)
    sequence = sample_teacher_involved(
        PreTrained(1, 3), teacher, student, noise_BLC, labels_B, SETTINGS, Draw(uniform_BL)
    )
    tokens_BL = generate_tokens(teacher, labels_B, SETTINGS, Draw(uniform_BL), num_steps=2)
    start = teacher.layout.starts[2]
    assert tokens_BL.shape == (6, start)
    states_BLC = torch.cat([teacher.tokenizer.embed(tokens_BL), noise_BLC[:, start:]], dim=1)
    with torch.inference_mode():
        expected = student.finish(states_BLC, 2, labels_B)
    assert torch.equal(sequence.embeddings_BLC, expected.embeddings_BLC)
    assert torch.equal(sequence.tokens_BL, expected.tokens_BL)
    assert torch.equal(sequence.tokens_BL[:, :start], tokens_BL)


def test_with_a_prefix_the_teacher_generates_only_the_steps_after_it(teacher: Teacher, student: Student) -> None:
    noise_BLC, labels_B = noise(teacher, 6), torch.arange(6)
    flow_map = FlowMap(teacher.codebook_VC, 32)
    sequence = sample_teacher_involved(
        PreTrained(2, 3), teacher, student, noise_BLC, labels_B, SETTINGS, MapNoise(flow_map, noise_BLC)
    )
    first, last = teacher.layout.starts[1:3]
    with torch.inference_mode():
        first_pass = student.finish(noise_BLC, 0, labels_B)
        prefix_BL = first_pass.tokens_BL
        # The teacher's walk with the student's first step forced gives the same second step.
        chosen: list[torch.Tensor] = []

        def choose(log_probs_BsV: torch.Tensor, span: slice) -> torch.Tensor:
            if span.start < first:
                return prefix_BL[:, span]
            chosen.append(MapNoise(flow_map, noise_BLC)(log_probs_BsV, span))
            return chosen[-1]

        generate_tokens(teacher, labels_B, SETTINGS, choose, num_steps=2)
        tokens_BP = torch.cat([prefix_BL[:, :first], chosen[0]], dim=1)
        states_BLC = torch.cat([teacher.tokenizer.embed(tokens_BP), noise_BLC[:, last:]], dim=1)
        expected = student.finish(states_BLC, 2, labels_B)
    assert torch.equal(sequence.tokens_BL[:, :last], tokens_BP)
    assert torch.equal(sequence.tokens_BL, expected.tokens_BL)
    torch.testing.assert_close(sequence.embeddings_BLC, expected.embeddings_BLC)


def test_the_teacher_may_generate_the_last_step(teacher: Teacher, student: Student) -> None:
    noise_BLC, labels_B, last = noise(teacher, 6), torch.arange(6), teacher.layout.num_steps + 1
    flow_map = FlowMap(teacher.codebook_VC, 32)
    whole = sample_teacher_involved(
        PreTrained(1, last), teacher, student, noise_BLC, labels_B, SETTINGS, MapNoise(flow_map, noise_BLC)
    )
    tokens_BL = generate_tokens(teacher, labels_B, SETTINGS, MapNoise(flow_map, noise_BLC))
    assert torch.equal(whole.tokens_BL, tokens_BL)
    assert torch.equal(whole.embeddings_BLC, teacher.tokenizer.embed(tokens_BL))


def test_all_steps_of_the_teacher_equal_the_teacher_alone(teacher: Teacher, student: Student) -> None:
    methods = Methods(teacher, SETTINGS, FlowMap(teacher.codebook_VC.float(), 16), student, torch.empty(0), seed=3)
    labels_B, last = torch.tensor([1, 4, 7]), teacher.layout.num_steps + 1
    mapped_BL = methods.sequence(PreTrained(1, last, from_noise=True), 5, labels_B).tokens_BL
    assert torch.equal(mapped_BL, methods.sequence(TEACHER_FLOW, 5, labels_B).tokens_BL)
    drawn_BL = methods.sequence(PreTrained(1, last), 5, labels_B).tokens_BL
    assert torch.equal(drawn_BL, methods.sequence(TEACHER, 5, labels_B).tokens_BL)
    assert not torch.equal(drawn_BL, mapped_BL)
