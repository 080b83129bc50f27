"""The map carries Gaussian noise to the teacher's distribution: chi-square tests with fixed p."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from generate_pairs.flow_map.exponential_adams import default_num_steps
from generate_pairs.flow_map.flow_map import FlowMap

CASES = [  # V, C, perplexity; small codebooks in few dimensions are the hardest
    (64, 3, 1.1),
    (64, 3, 3.0),
    (64, 3, 20.0),
    (64, 3, 55.0),
    (64, 6, 1.1),
    (64, 6, 5.0),
    (64, 6, 50.0),
    (16, 4, 1.1),
    (16, 4, 8.0),
    (256, 8, 2.0),
    (256, 8, 100.0),
]


def chi_square_p_value(counts_V: Tensor, p_V: Tensor) -> float:
    """Pearson's test; all tokens with an expected count below ten are one class."""
    expected = p_V.double() / p_V.double().sum() * counts_V.sum()
    rare = expected < 10
    observed = torch.cat((counts_V[~rare].double(), counts_V[rare].sum(0, keepdim=True).double()))
    expected = torch.cat((expected[~rare], expected[rare].sum(0, keepdim=True)))
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected).square() / expected).sum().item()
    return float(scipy.stats.chi2.sf(statistic, len(expected) - 1))


def tokens_of_many_draws(flow_map: FlowMap, log_p_V: Tensor, num_draws: int, seed: int) -> Tensor:
    """Counts (V,) of the tokens of `num_draws` rounded Gaussian draws."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(len(log_p_V), dtype=torch.int64)
    for start in range(0, num_draws, 25_000):
        num_rows = min(25_000, num_draws - start)
        noise = torch.randn(num_rows, flow_map.codebook_dim, generator=generator).half()
        tokens = flow_map(noise, log_p_V.expand(num_rows, -1)).tokens_N
        counts += torch.bincount(tokens, minlength=len(counts))
    return counts


def check_distribution(make_log_probs, vocab_size, dim, perplexity, num_draws):
    codebook = torch.randn(vocab_size, dim, generator=torch.Generator().manual_seed(100))
    log_p = make_log_probs(1, vocab_size, perplexity, perplexity, 101)[0]
    flow_map = FlowMap(codebook, default_num_steps(dim))
    counts = tokens_of_many_draws(flow_map, log_p, num_draws, 102)
    assert counts.sum() == num_draws
    assert chi_square_p_value(counts, log_p.exp()) > 1e-3 / len(CASES)


@pytest.mark.parametrize(("vocab_size", "dim", "perplexity"), CASES)
def test_tokens_follow_p(log_probs_of_perplexity, vocab_size, dim, perplexity):
    check_distribution(log_probs_of_perplexity, vocab_size, dim, perplexity, num_draws=25_000)


@pytest.mark.slow
@pytest.mark.parametrize(("vocab_size", "dim", "perplexity"), CASES)
def test_tokens_follow_p_at_a_million_draws(log_probs_of_perplexity, vocab_size, dim, perplexity):
    check_distribution(log_probs_of_perplexity, vocab_size, dim, perplexity, num_draws=1_000_000)


def test_rare_tokens_keep_their_probability():
    """q = 2e-3 over 15 tokens: an absolute stopping threshold would lose most of them, a relative one none."""
    log_p = torch.randn(16, generator=torch.Generator().manual_seed(103))
    log_p[1:] = log_p[1:].log_softmax(dim=0) + math.log(2e-3)
    log_p[0] = math.log1p(-2e-3)
    codebook = torch.randn(16, 8, generator=torch.Generator().manual_seed(104))
    counts = tokens_of_many_draws(FlowMap(codebook, 32), log_p, 200_000, 105)
    assert chi_square_p_value(counts, log_p.exp()) > 1e-3
    assert scipy.stats.binomtest(int(counts[1:].sum()), 200_000, 2e-3).pvalue > 1e-3


def test_the_test_detects_a_small_error():
    """With these counts, moving one per cent of the mass between two tokens is detected."""
    log_p = torch.randn(64, generator=torch.Generator().manual_seed(106)).log_softmax(dim=0)
    p = log_p.exp()
    drawn = torch.multinomial(p, 25_000, replacement=True, generator=torch.Generator().manual_seed(107))
    counts = torch.bincount(drawn, minlength=64)
    assert chi_square_p_value(counts, p) > 1e-3
    first, second = p.argsort(descending=True)[:2].tolist()
    p[first] += 0.01
    p[second] -= 0.01
    assert chi_square_p_value(counts, p) < 1e-3
