"""The flow map against closed forms and a reference solver, and the properties that callers need."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from generate_pairs.flow_map.exponential_adams import default_num_steps
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.filtering import filter_llamagen, filter_var


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored_noise(*shape: int, seed: int) -> Tensor:
    return gaussian(*shape, seed=seed).half()


def quantile_tokens(noise_N1: Tensor, log_p_NV: Tensor, codebook_V1: Tensor) -> Tensor:
    """The map in one dimension: the quantile of p, in the order of the codebook rows, at Phi(noise)."""
    order = codebook_V1[:, 0].argsort()
    cumulative = log_p_NV.double().softmax(dim=1)[:, order].cumsum(dim=1)
    place = (torch.special.ndtr(noise_N1.double()) > cumulative).sum(dim=1)
    return order[place.clamp(max=len(order) - 1)]


def share_that_differs(a: Tensor, b: Tensor) -> float:
    return (a != b).double().mean().item()


def test_the_reference_solver_has_the_posterior_of_the_straight_paths(reference):
    """The weights of equation (2), in x and t, are those of equation (6), in w = x / (1 - t) and u = t / (1 - t)."""
    x, codebook = gaussian(5, 3, seed=0).double(), gaussian(7, 3, seed=1).double()
    p, t = gaussian(5, 7, seed=2).double().softmax(dim=1), torch.tensor([0.0, 0.1, 0.3, 0.7, 0.9]).double()
    distance = (x[:, None] - t[:, None, None] * codebook).square().sum(dim=2)
    weights = p * torch.exp(-distance / (2 * (1 - t[:, None]) ** 2))
    expected = weights / weights.sum(dim=1, keepdim=True)
    w, u = x / (1 - t[:, None]), t / (1 - t)
    torch.testing.assert_close(reference.posterior(w, u, p.log(), codebook), expected, atol=1e-12, rtol=1e-12)


def test_one_dimension_is_the_quantile_map(reference, log_probs_of_perplexity):
    codebook, noise = gaussian(20, 1, seed=3), stored_noise(20_000, 1, seed=4)
    log_p = log_probs_of_perplexity(20_000, 20, 1.1, 18, 5)
    expected = quantile_tokens(noise, log_p, codebook)
    assert torch.equal(reference.reference_tokens(noise, log_p, codebook), expected)
    # On a line, rows can be closer than the grid resolves; only such rows may be confused.
    mapped = FlowMap(codebook, 64)(noise, log_p).tokens_N
    assert share_that_differs(mapped, expected) < 0.02
    assert (codebook[mapped] - codebook[expected]).abs().max() < 0.3


def test_evenly_spaced_rows_in_one_dimension_give_the_quantile_map(log_probs_of_perplexity):
    codebook, noise = torch.arange(8.0)[:, None], stored_noise(20_000, 1, seed=6)
    log_p = log_probs_of_perplexity(20_000, 8, 1.1, 7.5, 7)
    mapped = FlowMap(codebook, 64)(noise, log_p).tokens_N
    assert share_that_differs(mapped, quantile_tokens(noise, log_p, codebook)) < 5e-4


@pytest.mark.parametrize("q", [0.5, 0.1, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("dim", [1, 3, 8])
def test_two_rows_are_separated_by_a_plane_at_the_normal_quantile(q, dim):
    """The rarer row gets the noise beyond Phi^-1(1 - q) along the line through both rows."""
    codebook = gaussian(2, dim, seed=8)
    line = torch.nn.functional.normalize(codebook[1] - codebook[0], dim=0)
    along = -torch.special.ndtri(torch.tensor(q, dtype=torch.float64)).float() + torch.linspace(-1, 1, 400)
    across = gaussian(400, dim, seed=9)
    noise = across - (across @ line)[:, None] * line + along[:, None] * line
    log_p = torch.tensor([math.log1p(-q), math.log(q)]).repeat(400, 1)
    mapped = FlowMap(codebook, default_num_steps(dim))(noise, log_p)
    assert mapped.tokens_N.tolist() == [0] * 200 + [1] * 200


def test_a_single_possible_token_needs_no_evaluation():
    noise = stored_noise(4, 3, seed=10)
    alone = FlowMap(torch.ones(1, 3), 32)(noise, torch.zeros(4, 1))
    assert alone.tokens_N.tolist() == [0] * 4
    assert alone.num_evaluations_N.tolist() == [0] * 4
    for vocab_size in (40, 4096):
        log_p = torch.full((4, vocab_size), -torch.inf)
        log_p[torch.arange(4), torch.tensor([3, 0, 17, 39])] = -2.0
        left = FlowMap(gaussian(vocab_size, 3, seed=11), 32)(noise, log_p)
        assert left.tokens_N.tolist() == [3, 0, 17, 39]
        assert left.num_evaluations_N.tolist() == [0] * 4
    log_p = torch.tensor([[-200.0, 0.0, -150.0]]).repeat(4, 1)
    certain = FlowMap(gaussian(3, 3, seed=12), 32)(noise, log_p)
    assert certain.tokens_N.tolist() == [1] * 4
    assert certain.num_evaluations_N.tolist() == [0] * 4


@pytest.mark.parametrize("vocab_size", [6, 2048])
def test_of_identical_rows_the_most_probable_takes_all(vocab_size):
    codebook = gaussian(vocab_size, 3, seed=13)
    codebook[[1, 4]] = codebook[2].clone()
    log_p = torch.full((50, vocab_size), -torch.inf)
    log_p[:, [1, 2, 4]] = torch.tensor([0.2, 0.5, 0.3]).log()
    assert FlowMap(codebook, 64)(stored_noise(50, 3, seed=14), log_p).tokens_N.tolist() == [2] * 50
    log_p[:, 3] = math.log(0.5)
    tokens = FlowMap(codebook, 64)(stored_noise(50, 3, seed=14), log_p).tokens_N
    assert set(tokens.tolist()) == {2, 3}


BOUNDS = {16: 7e-3, 32: 1e-3, 64: 3e-4}


def check_agreement(reference, codebook, log_p, bounds=BOUNDS):
    """Check the share of tokens that differ from the reference, for each number of steps."""
    noise = stored_noise(len(log_p), codebook.shape[1], seed=21)
    size = 2_000_000 // len(codebook)  # limits the memory of the float64 reference to some hundred MB
    parts = zip(noise.split(size), log_p.split(size), strict=True)
    expected = torch.cat([reference.reference_tokens(*part, codebook) for part in parts])
    shares = {
        num_steps: share_that_differs(FlowMap(codebook, num_steps)(noise, log_p).tokens_N, expected)
        for num_steps in bounds
    }
    assert all(shares[num_steps] <= allowed for num_steps, allowed in bounds.items()), shares


@pytest.mark.parametrize(
    ("vocab_size", "dim", "num_rows", "bounds"),
    [
        (64, 3, 8_000, {16: 1e-2, 64: 3e-4}),
        (64, 4, 8_000, BOUNDS),
        (256, 8, 4_000, BOUNDS),
        pytest.param(64, 3, 200_000, {16: 7e-3, 32: 1e-3, 64: 3e-4}, marks=pytest.mark.slow),
        pytest.param(64, 4, 200_000, BOUNDS, marks=pytest.mark.slow),
        pytest.param(256, 8, 100_000, BOUNDS, marks=pytest.mark.slow),
    ],
)
def test_agreement_with_the_reference(reference, log_probs_of_perplexity, vocab_size, dim, num_rows, bounds):
    log_p = log_probs_of_perplexity(num_rows, vocab_size, 1.2, 0.9 * vocab_size, 22)
    check_agreement(reference, gaussian(vocab_size, dim, seed=20), log_p, bounds)


def var_like(make_log_probs, num_rows, vocab_size=4096):
    """Anisotropic codebook, top-k and top-p: some rows gather their candidates, others do not."""
    codebook = gaussian(vocab_size, 32, seed=30) * torch.logspace(0, -1, 32)
    logits = make_log_probs(num_rows, vocab_size, 1.2, 0.9 * vocab_size, 31)
    return codebook, filter_var(logits, 900 * vocab_size // 4096, 0.96)


def llamagen_like(make_log_probs, num_rows, vocab_size=16384):
    """Clusters on the unit sphere, top-k."""
    centres = gaussian(64, 8, seed=32).repeat(vocab_size // 64, 1)
    codebook = torch.nn.functional.normalize(centres + 0.7 * gaussian(vocab_size, 8, seed=33), dim=1)
    logits = make_log_probs(num_rows, vocab_size, 1.2, min(5000, 0.9 * vocab_size), 34)
    return codebook, filter_llamagen(logits, 1000 * vocab_size // 16384, 1.0, 1.0)


def test_agreement_of_truncated_rows_in_large_codebooks(reference, log_probs_of_perplexity):
    for rows in (var_like, llamagen_like):
        codebook, log_p = rows(log_probs_of_perplexity, 500, 1024)
        check_agreement(reference, codebook, log_p, {16: 7e-3, 32: 2e-3, 64: 0.0})


@pytest.mark.slow
@pytest.mark.parametrize("rows", [var_like, llamagen_like])
def test_agreement_in_official_codebook_sizes_at_full_count(reference, log_probs_of_perplexity, rows):
    codebook, log_p = rows(log_probs_of_perplexity, 2_000)
    check_agreement(reference, codebook, log_p)


def test_peaked_rows_agree_with_the_reference_near_the_decision_boundary(reference):
    """q = 1e-9 over 63 rows: the noise is so large that other tokens than the most probable win."""
    codebook = gaussian(64, 4, seed=40)
    log_p = gaussian(2_000, 64, seed=41)
    log_p[:, 0] = 0.0
    log_p[:, 1:] = log_p[:, 1:].log_softmax(dim=1) + math.log(1e-9)
    noise = torch.nn.functional.normalize(gaussian(2_000, 4, seed=42), dim=1)
    noise = (noise * torch.linspace(5, 10, 2_000)[:, None]).half()
    expected = reference.reference_tokens(noise, log_p, codebook)
    assert 0.2 < (expected != 0).double().mean() < 0.8
    for num_steps, allowed in ((32, 3e-3), (64, 1e-3)):
        mapped = FlowMap(codebook, num_steps)(noise, log_p).tokens_N
        assert share_that_differs(mapped, expected) <= allowed


@pytest.mark.parametrize(("vocab_size", "dim"), [(64, 3), (256, 8)])
def test_stopping_changes_nothing_in_20_000_rows(log_probs_of_perplexity, vocab_size, dim):
    noise = stored_noise(20_000, dim, seed=51)
    log_p = log_probs_of_perplexity(20_000, vocab_size, 1.02, 0.9 * vocab_size, 52)
    flow_map = FlowMap(gaussian(vocab_size, dim, seed=50), 32)
    stopped, full = flow_map(noise, log_p), flow_map(noise, log_p, stop=False)
    assert torch.equal(stopped.tokens_N, full.tokens_N)
    assert bool((full.num_evaluations_N == 32).all())
    assert bool((stopped.num_evaluations_N <= 32).all())
    assert stopped.num_evaluations_N.double().mean() < 25


def test_mean_evaluations_at_32_steps(log_probs_of_perplexity):
    for rows, bound in ((var_like, 15), (llamagen_like, 25)):
        codebook, log_p = rows(log_probs_of_perplexity, 200)
        mapped = FlowMap(codebook, 32)(stored_noise(200, codebook.shape[1], seed=53), log_p)
        assert mapped.num_evaluations_N.double().mean() <= bound


def test_the_map_does_not_depend_on_scale_and_origin_of_the_codebook(log_probs_of_perplexity):
    codebook, noise = gaussian(64, 3, seed=60).double(), stored_noise(4_000, 3, seed=61)
    log_p = log_probs_of_perplexity(4_000, 64, 1.2, 60, 62)
    tokens = FlowMap(codebook, 32)(noise, log_p).tokens_N
    for changed in (codebook * 1e-3, codebook * 37.0, codebook + 100.0):
        assert torch.equal(FlowMap(changed, 32)(noise, log_p).tokens_N, tokens)


def test_log_probabilities_need_not_be_normalised(log_probs_of_perplexity):
    flow_map, noise = FlowMap(gaussian(64, 3, seed=60), 32), stored_noise(2_000, 3, seed=61)
    log_p = log_probs_of_perplexity(2_000, 64, 1.2, 60, 62)
    assert torch.equal(flow_map(noise, log_p + 8).tokens_N, flow_map(noise, log_p).tokens_N)


@pytest.mark.parametrize(("vocab_size", "top_k"), [(64, 0), (100, 0), (1024, 200), (1024, 100)])
def test_a_row_does_not_depend_on_its_batch(log_probs_of_perplexity, vocab_size, top_k):
    log_p = filter_var(log_probs_of_perplexity(100, vocab_size, 1.2, 60, 63), top_k, 0.98)
    flow_map, noise = FlowMap(gaussian(vocab_size, 4, seed=64), 32), stored_noise(100, 4, seed=65)
    together = flow_map(noise, log_p)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(66))
    shuffled = flow_map(noise[order], log_p[order])
    assert torch.equal(shuffled.tokens_N, together.tokens_N[order])
    for size in (1, 7, 40):
        parts = [flow_map(*part) for part in zip(noise.split(size), log_p.split(size), strict=True)]
        assert torch.equal(torch.cat([part.tokens_N for part in parts]), together.tokens_N)


def test_gathered_rows_and_the_full_codebook_give_the_same_tokens(monkeypatch, log_probs_of_perplexity):
    log_p = filter_var(log_probs_of_perplexity(1_000, 1024, 1.2, 900, 67), 100, 0.0)
    flow_map, noise = FlowMap(gaussian(1024, 6, seed=68), 32), stored_noise(1_000, 6, seed=69)
    gathered = flow_map(noise, log_p)
    monkeypatch.setattr("generate_pairs.flow_map.flow_map.GATHER_MIN_VOCAB", 10**9)
    full = flow_map(noise, log_p)
    assert torch.equal(gathered.tokens_N, full.tokens_N)
    assert (gathered.num_evaluations_N - full.num_evaluations_N).abs().max() <= 1


def test_filtered_tokens_never_appear(log_probs_of_perplexity):
    for vocab_size, top_k in ((64, 5), (2048, 5), (2048, 1500)):
        log_p = filter_var(log_probs_of_perplexity(400, vocab_size, 1.2, 60, 70), top_k, 0.0)
        mapped = FlowMap(gaussian(vocab_size, 3, seed=71), 16)(stored_noise(400, 3, seed=72), log_p)
        assert bool((log_p.gather(1, mapped.tokens_N[:, None]) > -torch.inf).all())


def test_results_repeat_and_inputs_are_unchanged(log_probs_of_perplexity):
    log_p, noise = log_probs_of_perplexity(500, 64, 1.2, 60, 73), stored_noise(500, 3, seed=74).float()
    before = log_p.clone(), noise.clone()
    flow_map = FlowMap(gaussian(64, 3, seed=75), 64)
    first, second = flow_map(noise, log_p), flow_map(noise, log_p)
    assert torch.equal(first.tokens_N, second.tokens_N)
    assert torch.equal(first.num_evaluations_N, second.num_evaluations_N)
    assert torch.equal(log_p, before[0])
    assert torch.equal(noise, before[1])
    assert first.tokens_N.dtype == first.num_evaluations_N.dtype == torch.int64


def test_float16_noise_is_used_exactly():
    flow_map, noise = FlowMap(gaussian(64, 3, seed=76), 32), stored_noise(500, 3, seed=77)
    log_p = gaussian(500, 64, seed=78)
    assert torch.equal(flow_map(noise, log_p).tokens_N, flow_map(noise.float(), log_p).tokens_N)


def test_an_empty_batch_maps_to_nothing():
    assert FlowMap(gaussian(64, 3, seed=79), 32)(torch.zeros(0, 3), torch.zeros(0, 64)).tokens_N.shape == (0,)


def test_the_global_matmul_precision_is_unchanged():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        FlowMap(gaussian(8, 3, seed=80), 8)(stored_noise(2, 3, seed=81), torch.zeros(2, 8))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_golden_tokens():
    """Changing these tokens breaks: PAIR."""
    angle = torch.arange(16) * 0.7
    codebook = torch.stack((torch.cos(angle) * (1 + 0.1 * angle), torch.sin(angle), 0.05 * angle), dim=1)
    noise = torch.sin(torch.arange(24 * 3) * 1.3).view(24, 3) * 1.5
    log_p = torch.cos(torch.arange(24 * 16) * 0.37).view(24, 16) * 2
    mapped = FlowMap(codebook, 64)(noise.half(), log_p)
    expected = [2, 15, 1, 4, 6, 2, 5, 8, 11, 6, 10, 13, 8, 11, 14, 0, 13, 15, 1, 13, 0, 2, 5, 9]
    assert mapped.tokens_N.tolist() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_a_gpu_gives_the_same_tokens(log_probs_of_perplexity):
    for vocab_size, top_k in ((64, 0), (4096, 900), (4096, 300)):
        log_p = filter_var(log_probs_of_perplexity(4_000, vocab_size, 1.2, 0.9 * vocab_size, 82), top_k, 0.0)
        codebook, noise = gaussian(vocab_size, 8, seed=83), stored_noise(4_000, 8, seed=84)
        on_cpu = FlowMap(codebook, 32)(noise, log_p).tokens_N
        on_gpu = FlowMap(codebook, 32).to("cuda:0")(noise.cuda(), log_p.cuda()).tokens_N.cpu()
        assert share_that_differs(on_cpu, on_gpu) <= 5e-4


def test_bad_rows_are_named():
    flow_map = FlowMap(gaussian(8, 3, seed=90), 8)
    noise, log_p = torch.zeros(4, 3), torch.zeros(4, 8)
    for value, where, message in (
        (torch.nan, (2, 5), "row 2: log_probs contains NaN"),
        (torch.inf, (1, 0), "row 1: log_probs contains NaN or"),
        (-torch.inf, (3,), "row 3: log_probs leaves no token possible"),
    ):
        broken = log_p.clone()
        broken[where] = value
        with pytest.raises(ValueError, match=message):
            flow_map(noise, broken)
    broken = noise.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match="row 2: noise"):
        flow_map(broken, log_p)


@pytest.mark.parametrize(
    ("noise", "log_probs", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 8), r"noise must have shape \(4, 3\), got \(4, 2\)"),
        (torch.zeros(4, 3), torch.zeros(5, 8), r"log_probs must have shape \(4, 8\), got \(5, 8\)"),
        (torch.zeros(4, 3), torch.zeros(4, 7), r"log_probs must have shape \(4, 8\)"),
        (torch.zeros(3), torch.zeros(4, 8), "noise must have shape"),
        (torch.zeros(4, 3).double(), torch.zeros(4, 8), "noise must be torch.float16 or torch.float32"),
        (torch.zeros(4, 3), torch.zeros(4, 8).half(), "log_probs must be torch.float32"),
        (torch.zeros(4, 3), torch.zeros(4, 8).bfloat16(), "log_probs must be torch.float32"),
        (torch.zeros(4, 3), torch.zeros(4, 8, device="meta"), "log_probs is on meta, the flow map on cpu"),
    ],
)
def test_wrong_inputs_are_refused(noise, log_probs, message):
    with pytest.raises(ValueError, match=message):
        FlowMap(gaussian(8, 3, seed=90), 8)(noise, log_probs)


@pytest.mark.parametrize(
    ("codebook", "num_steps", "message"),
    [
        (torch.zeros(8), 8, r"\(V, C\)"),
        (torch.zeros(0, 3), 8, r"\(V, C\)"),
        (torch.zeros(8, 3, dtype=torch.int64), 8, "floating-point"),
        (torch.full((8, 3), torch.nan), 8, "NaN"),
        (torch.zeros(8, 3), 0, "num_steps"),
    ],
)
def test_wrong_construction_is_refused(codebook, num_steps, message):
    with pytest.raises(ValueError, match=message):
        FlowMap(codebook, num_steps)
