"""onestep* and skip-n: exact frequencies, draws from them, and the steps that are left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.sampling.baselines import TokenFrequencies, sample_onestep_star, sample_skip_n, skip_n_fill
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.var.tokenizer import VarTokenizer, VarTokenizerConfig
from shards.core.errors import Refused


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(count: int, num_tokens: int, seed: int) -> Tensor:
    return torch.rand(count, num_tokens, dtype=torch.float64, generator=seeded(seed))


def token_frequencies(tokens: Tensor, labels: Tensor, num_classes: int, vocab_size: int) -> Tensor:
    frequencies = TokenFrequencies(num_classes, tokens.shape[1], vocab_size)
    frequencies.add(tokens, labels)
    return frequencies.probabilities()


class PlainTokenizer:
    """The image of a sequence is its tokens, one per pixel."""

    def embed(self, tokens_BL: Tensor) -> Tensor:
        return tokens_BL.unsqueeze(2).float()

    def decode(self, embeddings_BLC: Tensor) -> Tensor:
        return embeddings_BLC.unsqueeze(1)


def still_teacher(tokenizer: object, tokens_per_step: tuple[int, ...]) -> Any:
    """A teacher with a tokenizer and a layout only."""
    return SimpleNamespace(tokenizer=tokenizer, layout=TokenLayout(tokens_per_step))


def test_frequencies_are_shares_within_the_class():
    tokens = torch.tensor([[0, 1], [0, 2], [2, 2], [1, 0]])
    P = token_frequencies(tokens, torch.tensor([0, 0, 0, 1]), num_classes=2, vocab_size=3)
    assert P.dtype == torch.float32
    third = 1.0 / 3.0
    expected = [[[2 * third, 0, third], [0, third, 2 * third]], [[0, 1, 0], [1, 0, 0]]]
    torch.testing.assert_close(P, torch.tensor(expected), rtol=1e-7, atol=0.0)


def test_an_empty_class_gets_the_marginals_of_all():
    tokens = torch.tensor([[0], [0], [1], [1], [1]])
    P = token_frequencies(tokens, torch.tensor([0, 0, 2, 2, 2]), num_classes=3, vocab_size=2)
    assert P[0].tolist() == [[1.0, 0.0]]
    assert P[2].tolist() == [[0.0, 1.0]]
    torch.testing.assert_close(P[1], torch.tensor([[0.4, 0.6]]))


def test_batches_count_like_all_pairs_at_once():
    tokens = torch.randint(7, (300, 5), generator=seeded(0))
    labels = torch.randint(4, (300,), generator=seeded(1))
    frequencies = TokenFrequencies(num_classes=4, num_tokens=5, vocab_size=7)
    for rows in torch.arange(300).split(64):
        frequencies.add(tokens[rows].to(torch.int32), labels[rows])
    assert int(frequencies.counts_KLV.sum()) == 300 * 5
    assert torch.equal(frequencies.probabilities(), token_frequencies(tokens, labels, 4, 7))


@pytest.mark.parametrize(
    ("tokens", "labels", "message"),
    [
        ([[0, 3]], [0], r"token numbers must be in 0\.\.2, got 0 to 3"),
        ([[0, -1]], [0], "token numbers"),
        ([[0, 1]], [2], r"label numbers must be in 0\.\.1"),
        ([[0, 1, 2]], [0], r"tokens must be \(1, 2\), got \(1, 3\)"),
    ],
)
def test_tokens_and_labels_outside_the_table_are_refused(tokens, labels, message):
    frequencies = TokenFrequencies(num_classes=2, num_tokens=2, vocab_size=3)
    with pytest.raises(ValueError, match=message):
        frequencies.add(torch.tensor(tokens), torch.tensor(labels))
    assert not frequencies.counts_KLV.any()


def test_frequencies_of_no_pairs_are_refused():
    with pytest.raises(ValueError, match="not defined"):
        TokenFrequencies(2, 3, 4).probabilities()


def test_onestep_star_draws_each_position_from_its_frequencies():
    P = torch.rand(2, 3, 5, generator=seeded(2))
    P[:, :, 4] = 0.0
    P /= P.sum(dim=2, keepdim=True)
    labels = torch.arange(2).repeat_interleave(8_000)
    tokens = sample_onestep_star(P, labels, uniform(16_000, 3, 3))
    assert tokens.shape == (16_000, 3)
    assert tokens.dtype == torch.int64
    drawn = token_frequencies(tokens, labels, 2, 5)
    spread = (P * (1 - P) / 8_000).sqrt()
    assert ((drawn - P).abs() <= 4.5 * spread).all()


def test_onestep_star_draws_positions_independently():
    """Two sequences, 00 and 11: independent positions give all four combinations with equal probability."""
    P = token_frequencies(torch.tensor([[0, 0], [1, 1]]), torch.tensor([0, 0]), 1, 2)
    tokens = sample_onestep_star(P, torch.zeros(10_000, dtype=torch.int64), uniform(10_000, 2, 4))
    combinations = (tokens @ torch.tensor([2, 1])).bincount(minlength=4)
    assert ((combinations - 2_500).abs() < 4.5 * (10_000 * 0.25 * 0.75) ** 0.5).all()


def test_onestep_star_uses_the_given_uniform_numbers():
    P, labels = torch.full((1, 6, 8), 1 / 8), torch.zeros(30, dtype=torch.int64)
    uniform_BL = uniform(30, 6, 7)
    assert torch.equal(sample_onestep_star(P, labels, uniform_BL), (uniform_BL * 8).long())


def test_skip_n_draws_the_last_tokens_from_the_marginals():
    """Three AR steps of 1, 2 and 3 tokens; leaving out two keeps one token."""
    teacher = still_teacher(PlainTokenizer(), (1, 2, 3))
    P = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 3, 2, 1], [3, 3, 3, 0, 0, 0]]), 4).float()
    tokens = torch.tensor([[2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1]])
    labels = torch.tensor([0, 1])
    assert skip_n_fill(teacher) == "marginals"
    images = sample_skip_n(teacher, tokens, 2, P, labels, uniform(2, 6, 0))
    assert images.flatten(1).tolist() == [[2, 1, 2, 3, 2, 1], [1, 3, 3, 0, 0, 0]]
    images = sample_skip_n(teacher, tokens, 1, P, labels, uniform(2, 6, 0))
    assert images.flatten(1).tolist() == [[2, 2, 2, 3, 2, 1], [1, 1, 1, 0, 0, 0]]


def test_skip_n_of_var_adds_nothing_for_the_skipped_scales():
    """Not even phi's bias: the image is that of the sum over the kept scales, for any later tokens."""
    torch.manual_seed(0)
    config = VarTokenizerConfig(16, 4, 32, (1, 2), 1, scales=(1, 2, 4), image_channels=1, image_size=8)
    tokenizer = VarTokenizer(config).eval().requires_grad_(False)
    teacher = still_teacher(tokenizer, (1, 4, 16))
    tokens = torch.randint(16, (2, 21), generator=seeded(1))
    rows = tokenizer.embed(tokens)
    f_hat = tokenizer.quantize.upsampled(rows[:, :1], 0) + tokenizer.quantize.upsampled(rows[:, 1:5], 1)
    labels = torch.tensor([0, 1])
    images = sample_skip_n(teacher, tokens, 1, torch.empty(0), labels, torch.empty(0))
    assert skip_n_fill(teacher) == "nothing"
    torch.testing.assert_close(images, tokenizer.decoder(tokenizer.post_quant_conv(f_hat)))
    tokens[:, 5:] = 0
    assert torch.equal(sample_skip_n(teacher, tokens, 1, torch.empty(0), labels, torch.empty(0)), images)
    assert not torch.allclose(tokenizer.decode(tokenizer.embed(tokens)), images, atol=1e-3)


@pytest.mark.parametrize("n", [0, 3, -1])
def test_skip_n_that_leaves_no_step_or_skips_none_is_refused(n):
    teacher = still_teacher(PlainTokenizer(), (1, 1, 1))
    with pytest.raises(Refused, match=f"skip-{n} does not exist: this teacher has 3 AR steps, so n is 1 to 2"):
        sample_skip_n(teacher, torch.zeros(1, 3).long(), n, torch.ones(1, 3, 2) / 2, torch.tensor([0]), uniform(1, 3, 0))
