"""pre-trained-n-m: the paper's counting, and step by step what its definition says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.sampling.method_spec import PreTrained, usual_methods
from distill.sampling.methods import Methods
from distill.sampling.teacher_involved import sample_teacher_involved
from distill.student.student import Student
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.base import Teacher, TokenLayout
from generate_pairs.teachers.checkpoints import load_teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.trajectory import Draw, Force, MapNoise, walk
from shards.core.errors import Refused

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
    method = PreTrained.parse(name, layout)
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
def test_the_usual_ones_are_those_of_table_2(timesteps: tuple[int, ...], names: list[str]) -> None:
    assert [method.name for method in usual_methods(timesteps)] == [f"pre-trained-{name}" for name in names]


@pytest.mark.parametrize(
    "name",
    [
        "pre-trained-1-6-map",
        "pre-trained-0-3",
        "pre-trained-3-3",
        "pre-trained-4-3",
        "pre-trained-2-12",
        "pre-trained-2",
        "teacher",
    ],
)
def test_what_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(
        Refused, match="AR steps, so 1 <= N < M <= 11" if name.count("-") == 3 else "write pre-tr"
    ):
        PreTrained.parse(name, VAR)


@pytest.fixture(scope="module")
def teacher(teacher_path: Path) -> Teacher:
    return load_teacher(str(teacher_path)).teacher


@pytest.fixture(scope="module")
def student(teacher_path: Path) -> Student:
    """Its split lies inside the sequence, so that a prefix has to be snapped to codebook rows."""
    torch.manual_seed(0)
    loaded = load_teacher(str(teacher_path))
    made = Student.from_teacher(loaded, (0, 2), 1, "none", 1, initialise=True)
    return made.eval().requires_grad_(False)


def noise(teacher: Teacher, count: int) -> torch.Tensor:
    shape = (count, teacher.layout.num_tokens, teacher.codebook_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def test_without_a_prefix_the_teacher_begins_and_the_student_finishes(
    teacher: Teacher, student: Student
) -> None:
    noise_BLC, labels_B = noise(teacher, 6), torch.arange(6)
    uniform_BL = torch.rand(6, teacher.layout.num_tokens, dtype=torch.float64)
    made = sample_teacher_involved(
        PreTrained(1, 3),
        teacher,
        student,
        noise_BLC,
        labels_B,
        SETTINGS,
        Draw(uniform_BL),
    )
    tokens_BL = walk(teacher, labels_B, SETTINGS, Draw(uniform_BL), num_steps=2)
    start = teacher.layout.starts[2]
    assert tokens_BL.shape == (6, start)
    states_BLC = torch.cat([teacher.tokenizer.embed(tokens_BL), noise_BLC[:, start:]], dim=1)
    with torch.inference_mode():
        expected = student.finish(states_BLC, 2, labels_B)
    assert torch.equal(made.embeddings_BLC, expected.embeddings_BLC)
    assert torch.equal(made.tokens_BL, expected.tokens_BL)
    assert torch.equal(made.tokens_BL[:, :start], tokens_BL)


def test_with_a_prefix_only_the_steps_in_between_are_the_teachers(teacher: Teacher, student: Student) -> None:
    noise_BLC, labels_B = noise(teacher, 6), torch.arange(6)
    flow_map = FlowMap(teacher.codebook_VC, 32)
    made = sample_teacher_involved(
        PreTrained(2, 3), teacher, student, noise_BLC, labels_B, SETTINGS, MapNoise(flow_map, noise_BLC)
    )
    first, last = teacher.layout.starts[1:3]
    with torch.inference_mode():
        once = student.finish(noise_BLC, 0, labels_B)
        prefix_BL = once.tokens_BL
        # The teacher's whole walk with the student's first step forced gives the same second step.
        seen: list[torch.Tensor] = []

        def choose(log_probs_BsV: torch.Tensor, span: slice) -> torch.Tensor:
            if span.start < first:
                return Force(prefix_BL)(log_probs_BsV, span)
            seen.append(MapNoise(flow_map, noise_BLC)(log_probs_BsV, span))
            return seen[-1]

        walk(teacher, labels_B, SETTINGS, choose, num_steps=2)
        tokens_BP = torch.cat([prefix_BL[:, :first], seen[0]], dim=1)
        states_BLC = torch.cat([teacher.tokenizer.embed(tokens_BP), noise_BLC[:, last:]], dim=1)
        expected = student.finish(states_BLC, 2, labels_B)
    assert torch.equal(made.tokens_BL[:, :last], tokens_BP)
    assert torch.equal(made.tokens_BL, expected.tokens_BL)
    torch.testing.assert_close(made.embeddings_BLC, expected.embeddings_BLC)


def test_to_the_end_the_teacher_has_the_last_word(teacher: Teacher, student: Student) -> None:
    noise_BLC, labels_B, last = noise(teacher, 6), torch.arange(6), teacher.layout.num_steps + 1
    flow_map = FlowMap(teacher.codebook_VC, 32)
    whole = sample_teacher_involved(
        PreTrained(1, last), teacher, student, noise_BLC, labels_B, SETTINGS, MapNoise(flow_map, noise_BLC)
    )
    tokens_BL = walk(teacher, labels_B, SETTINGS, MapNoise(flow_map, noise_BLC))
    assert torch.equal(whole.tokens_BL, tokens_BL)
    assert torch.equal(whole.embeddings_BLC, teacher.tokenizer.embed(tokens_BL))


def test_from_the_noise_all_the_teachers_steps_are_what_made_the_pairs(
    teacher: Teacher, student: Student
) -> None:
    methods = Methods(
        teacher,
        SETTINGS,
        FlowMap(teacher.codebook_VC.float(), 16),
        student,
        frequencies_KLV=torch.empty(0),
        seed=3,
    )
    labels_B = torch.tensor([1, 4, 7])
    everything = f"pre-trained-1-{teacher.layout.num_steps + 1}"
    mapped_BL = methods.sequence(f"{everything}-flow", 5, labels_B)[1]
    assert torch.equal(mapped_BL, methods.sequence("teacher-flow", 5, labels_B)[1])
    drawn_BL = methods.sequence(everything, 5, labels_B)[1]
    assert torch.equal(drawn_BL, methods.sequence("teacher", 5, labels_B)[1])
    assert not torch.equal(drawn_BL, mapped_BL)
