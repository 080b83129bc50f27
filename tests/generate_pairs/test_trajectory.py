"""Token generation with every choice: forced, drawn, mapped from noise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.checkpoints import load_teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.trajectory import Draw, MapNoise, draw, generate_tokens
from shards.format.noise import uniform_numbers

SETTINGS = SamplingSettings(guidance_scale=1.5)


@pytest.fixture(scope="module")
def teacher(teacher_path: Path) -> Teacher:
    return load_teacher(str(teacher_path)).teacher


def noise(teacher: Teacher, count: int, seed: int = 0) -> torch.Tensor:
    shape = (count, teacher.layout.num_tokens, teacher.codebook_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(teacher: Teacher, count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(uniform_numbers(seed, 0, count, teacher.layout.num_tokens, 2))


class Force:
    """Choose the given tokens, independently of the teacher; record its log-probabilities."""

    def __init__(self, tokens_BL: torch.Tensor) -> None:
        self.tokens_BL = tokens_BL
        self.steps: list[torch.Tensor] = []

    def __call__(self, log_probs_BsV: torch.Tensor, span: slice) -> torch.Tensor:
        self.steps.append(log_probs_BsV)
        return self.tokens_BL[:, span]


def random_tokens(teacher: Teacher, count: int) -> torch.Tensor:
    return torch.randint(24, (count, teacher.layout.num_tokens), generator=torch.Generator().manual_seed(1))


def test_every_step_depends_on_the_tokens_before_it(teacher: Teacher) -> None:
    """The log-probabilities passed to the choice equal those of one forced pass."""
    force, labels_B = Force(random_tokens(teacher, 3)), torch.tensor([0, 4, 9])
    unguided = SamplingSettings(guidance_scale=1.0 if teacher.layout.num_steps == 16 else 0.0)
    assert torch.equal(generate_tokens(teacher, labels_B, unguided, force), force.tokens_BL)
    with torch.no_grad():
        expected_BLV = teacher.forced_logits(labels_B, force.tokens_BL).log_softmax(-1)
    torch.testing.assert_close(torch.cat(force.steps, dim=1), expected_BLV, atol=2e-5, rtol=0)


def test_generation_uses_full_float32_and_restores_the_settings(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU would round to TF32, for convolutions by default."""
    tokens_BL, recorded = torch.zeros(1, teacher.layout.num_tokens, dtype=torch.int64), set()

    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def choose(log_probs_BsV: torch.Tensor, span: slice) -> torch.Tensor:
        recorded.add(settings())
        return tokens_BL[:, span]

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        generate_tokens(teacher, torch.arange(1), SETTINGS, choose)
        assert (recorded, settings()) == ({("highest", False)}, ("high", True))
    finally:
        torch.set_float32_matmul_precision(before)


NEWER_NAMES = """
import torch
from generate_pairs.compute.float32 import full_float32
matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
matmul.fp32_precision, conv.fp32_precision = "tf32", "ieee"
try:
    print(torch.backends.cudnn.allow_tf32)
except RuntimeError:
    print("mixed")
with full_float32():
    print(matmul.fp32_precision, conv.fp32_precision)
print(matmul.fp32_precision, conv.fp32_precision)
"""


def test_full_float32_works_with_torchs_newer_names() -> None:
    """In a separate process, because torch then refuses the older names."""
    process = subprocess.run([sys.executable, "-c", NEWER_NAMES], capture_output=True, text=True)
    assert process.stdout.splitlines() == ["mixed", "ieee ieee", "tf32 ieee"], process.stderr


def test_the_map_is_a_function_of_the_noise(teacher: Teacher) -> None:
    flow_map, labels_B = FlowMap(teacher.codebook_VC, 32), torch.arange(10)
    noise_BLC = noise(teacher, 10)
    tokens_BL = generate_tokens(teacher, labels_B, SETTINGS, MapNoise(flow_map, noise_BLC))
    assert torch.equal(generate_tokens(teacher, labels_B, SETTINGS, MapNoise(flow_map, noise_BLC)), tokens_BL)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    shuffled_BL = generate_tokens(teacher, labels_B[order], SETTINGS, MapNoise(flow_map, noise_BLC[order]))
    assert torch.equal(shuffled_BL, tokens_BL[order])


@pytest.mark.parametrize("label", [0, 7])
def test_map_and_draw_agree_in_distribution(teacher: Teacher, label: int) -> None:
    """Tokens of the flow map and multinomial draws have the same distribution at each position (chi-square)."""
    count = 3_000
    labels_B = torch.full((count,), label)
    flow_map = FlowMap(teacher.codebook_VC, 64)
    mapped_BL = generate_tokens(teacher, labels_B, SETTINGS, MapNoise(flow_map, noise(teacher, count, 5)))
    drawn_BL = generate_tokens(teacher, labels_B, SETTINGS, Draw(uniform(teacher, count, 6)))
    p_values = []
    for position in range(teacher.layout.num_tokens):
        table = np.stack([np.bincount(t[:, position], minlength=24) for t in (mapped_BL, drawn_BL)])
        rare = table.sum(0) < 20
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(1)])
        table = table[:, table.sum(0) > 0]
        if table.shape[1] > 1:
            p_values.append(stats.chi2_contingency(table).pvalue)
    assert len(p_values) > 10
    assert min(p_values) * len(p_values) > 1e-3


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("steps", [1, 2])
def test_generation_continues_after_a_prefix(teacher: Teacher, guidance_scale: float, steps: int) -> None:
    """The log-probabilities are those of a generation in which the prefix was forced."""
    settings, labels_B = SamplingSettings(guidance_scale=guidance_scale), torch.tensor([0, 4, 9])
    tokens_BL = random_tokens(teacher, 3)
    whole, after = Force(tokens_BL), Force(tokens_BL)
    for force, prefix_BP in ((whole, None), (after, tokens_BL[:, : teacher.layout.starts[steps]])):
        assert torch.equal(generate_tokens(teacher, labels_B, settings, force, prefix_BP=prefix_BP), tokens_BL)
    for one, other in zip(after.steps, whole.steps[steps:], strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def test_generation_stops_after_num_steps(teacher: Teacher) -> None:
    tokens_BL = random_tokens(teacher, 4)
    first_BP = generate_tokens(teacher, torch.arange(4), SETTINGS, Force(tokens_BL), num_steps=2)
    assert torch.equal(first_BP, tokens_BL[:, : teacher.layout.starts[2]])


@pytest.mark.parametrize("count", [16, 21])
def test_a_prefix_must_end_between_two_steps_and_leave_one(teacher: Teacher, count: int) -> None:
    tokens_BL = torch.zeros(2, count, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"a prefix of {count} tokens"):
        generate_tokens(teacher, torch.arange(2), SETTINGS, Force(tokens_BL), prefix_BP=tokens_BL)


def test_draws_follow_the_probabilities() -> None:
    """Chi-square test of 200,000 draws at two positions, with some tokens of probability zero."""
    logits_2V = torch.randn(2, 40, generator=torch.Generator().manual_seed(8)) * 2
    logits_2V[:, [0, 7, 8, 39]] = -torch.inf
    P_2V = logits_2V.softmax(-1)
    count = 200_000
    numbers = torch.from_numpy(uniform_numbers(4, 0, count, 2, 2))
    tokens = torch.cat([draw(P_2V.expand(len(part), 2, 40), part) for part in numbers.split(20_000)])
    for position in range(2):
        counts = tokens[:, position].bincount(minlength=40).double()
        expected = P_2V[position].double() / P_2V[position].double().sum() * count
        possible = expected > 0
        assert not counts[~possible].any()
        assert expected[possible].min() > 5
        assert stats.chisquare(counts[possible].numpy(), expected[possible].numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("number", "token"), [(2**-53, 1), (0.25, 1), (0.75, 3), (1 - 2**-53, 3)])
def test_the_smallest_and_the_largest_number_draw_possible_tokens(number: float, token: int) -> None:
    """Impossible tokens before the first and after the last possible one are never drawn, for any sum of P."""
    for scale in (1.0, 0.3, 1e-30, 7.0):
        P_11V = torch.tensor([[[0.0, 0.5, 0.0, 0.5, 0.0, 0.0]]]) * scale
        assert draw(P_11V, torch.tensor([[number]], dtype=torch.float64)).tolist() == [[token]]


def test_rounded_sums_never_draw_an_impossible_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, the sum may grow at an impossible token, or be too small at the last possible one."""
    P_11V = torch.tensor([[[0.25, 0.0, 0.75, 0.0]]])
    number = torch.tensor([[0.25]], dtype=torch.float64)
    for sums in ([0.25, 0.25 + 1e-9, 1.0, 1.0], [0.25, 0.25, 1.0, 4.0 + 1e-9]):
        fake = torch.tensor([[sums]], dtype=torch.float64)
        monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim, fake=fake: fake)
        assert draw(P_11V, number).tolist() == [[2]]


def test_drawn_tokens_do_not_depend_on_the_batch(teacher: Teacher) -> None:
    labels_B, uniform_BL = torch.arange(12) % 10, uniform(teacher, 12)
    together_BL = generate_tokens(teacher, labels_B, SETTINGS, Draw(uniform_BL))
    assert not torch.equal(together_BL, generate_tokens(teacher, labels_B, SETTINGS, Draw(uniform(teacher, 12, 1))))
    for size in (1, 5):
        parts = zip(labels_B.split(size), uniform_BL.split(size), strict=True)
        tokens = [generate_tokens(teacher, labels, SETTINGS, Draw(numbers)) for labels, numbers in parts]
        assert torch.equal(torch.cat(tokens), together_BL)
