"""The flow map against closed forms, against a reference solver, and against what its callers rely on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from generate_pairs.flow_map.candidates import first_argmax, gather_support
from generate_pairs.flow_map.closed_form import default_num_steps, denoiser, velocity
from generate_pairs.flow_map.exponential_adams import adams_coefficients
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.filtering import filter_llamagen, filter_var


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored_noise(*shape: int, seed: int) -> Tensor:
    return gaussian(*shape, seed=seed).half()


def quantile_tokens(noise_N1: Tensor, log_p_NV: Tensor, codebook_V1: Tensor) -> Tensor:
    """The map in one dimension: mass in the order of the codebook rows, read off at Phi(noise)."""
    order = codebook_V1[:, 0].argsort()
    cumulative = log_p_NV.double().softmax(dim=1)[:, order].cumsum(dim=1)
    place = (torch.special.ndtr(noise_N1.double()) > cumulative).sum(dim=1)
    return order[place.clamp(max=len(order) - 1)]


def share_that_differs(a: Tensor, b: Tensor) -> float:
    return (a != b).double().mean().item()


# Coefficients


@pytest.mark.parametrize("num_steps", [1, 2, 3, 16, 64])
def test_weights_sum_to_the_length_of_the_step(num_steps):
    predictor, corrector = adams_coefficients(num_steps)
    tau = np.arange(num_steps + 1) / (num_steps + 1)
    u = tau / (1 - tau)
    np.testing.assert_allclose(predictor.sum(axis=1), np.diff(u), rtol=1e-12)
    np.testing.assert_allclose(corrector.sum(axis=1), np.diff(u), rtol=1e-12)
    assert predictor[0, 0] == pytest.approx(1 / num_steps, rel=1e-13)
    assert u[-1] == pytest.approx(num_steps)


def test_weights_are_exact_for_quadratics_and_cubics():
    num_steps = 12
    tau = np.arange(num_steps + 1) / (num_steps + 1)

    def integral(power, a, b):  # of tau^power / (1 - tau)^2
        antiderivative = {
            0: lambda x: 1 / (1 - x),
            1: lambda x: 1 / (1 - x) + math.log(1 - x),
            2: lambda x: x + 2 * math.log(1 - x) + 1 / (1 - x),
            3: lambda x: x**2 / 2 + 2 * x + 3 * math.log(1 - x) + 1 / (1 - x),
        }[power]
        return antiderivative(b) - antiderivative(a)

    predictor, corrector = adams_coefficients(num_steps)
    for i in range(2, num_steps):
        for power in range(3):
            nodes = tau[[i, i - 1, i - 2]] ** power
            assert predictor[i] @ nodes == pytest.approx(integral(power, tau[i], tau[i + 1]), rel=1e-11)
        for power in range(4):
            nodes = tau[[i + 1, i, i - 1, i - 2]] ** power
            assert corrector[i] @ nodes == pytest.approx(integral(power, tau[i], tau[i + 1]), rel=1e-11)


def test_convergence_order_is_at_least_three():
    """On dw/du = tanh(u w), the flow of two equally likely points at -1 and 1, up to u = 1."""

    def solve(num_steps):
        predictor, corrector = adams_coefficients(num_steps)
        w, history = 1.5, [0.0]
        for i in range((num_steps + 1) // 2):
            guess = w + predictor[i, : len(history)] @ history[:3]
            history = [math.tanh((i + 1) / (num_steps - i) * guess), *history[:3]]
            w += corrector[i, : len(history)] @ history
        return w

    exact = solve(4095)
    errors = [abs(solve(num_steps) - exact) for num_steps in (31, 63, 127)]
    assert errors[0] < 3e-5
    assert math.log2(errors[0] / errors[1]) > 3
    assert math.log2(errors[1] / errors[2]) > 3


def test_default_num_steps():
    assert [default_num_steps(dim) for dim in (1, 3, 4, 6, 8, 32)] == [64, 64, 64, 32, 32, 32]


# Closed forms


def test_denoiser_is_the_posterior_mean():
    x, codebook = gaussian(5, 3, seed=0).double(), gaussian(7, 3, seed=1).double()
    p = gaussian(5, 7, seed=2).double().softmax(dim=1)
    for t in (0.0, 0.3, 0.9):
        distance = (x[:, None] - t * codebook).square().sum(dim=2)
        weights = p * torch.exp(-distance / (2 * (1 - t) ** 2))
        expected = weights @ codebook / weights.sum(dim=1, keepdim=True)
        torch.testing.assert_close(denoiser(x, t, p, codebook), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(denoiser(x, 0.0, p, codebook), p @ codebook)


def test_velocity_and_denoiser_agree_with_the_flow_in_w_and_u(reference):
    """With u = t / (1 - t), w = x / (1 - t): dx/dt = v is dw/du = D, and D(x, t) the softmax in (w, u)."""
    x, codebook = gaussian(5, 3, seed=0).double(), gaussian(7, 3, seed=1).double()
    p = gaussian(5, 7, seed=2).double().softmax(dim=1)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    v, mean = velocity(x, t, p, codebook), denoiser(x, t, p, codebook)
    dw_dt = v / (1 - t[:, None]) + x / (1 - t[:, None]) ** 2
    du_dt = 1 / (1 - t[:, None]) ** 2
    torch.testing.assert_close(dw_dt / du_dt, mean, atol=1e-12, rtol=1e-12)
    w, u = x / (1 - t[:, None]), t / (1 - t)
    torch.testing.assert_close(reference.posterior(w, u, p.log(), codebook) @ codebook, mean)


def test_one_dimension_is_the_quantile_map(reference, log_probs_of_perplexity):
    codebook, noise = gaussian(20, 1, seed=3), stored_noise(20_000, 1, seed=4)
    log_p = log_probs_of_perplexity(20_000, 20, 1.1, 18, 5)
    expected = quantile_tokens(noise, log_p, codebook)
    assert torch.equal(reference.reference_tokens(noise, log_p, codebook), expected)
    # On a line rows can lie closer than the grid resolves: even then only such rows are confused.
    mapped = FlowMap(codebook, 64)(noise, log_p).tokens_N
    assert share_that_differs(mapped, expected) < 0.02
    assert (codebook[mapped] - codebook[expected]).abs().max() < 0.3


def test_evenly_spaced_rows_in_one_dimension_are_the_quantile_map_on_the_production_grid(
    log_probs_of_perplexity,
):
    codebook, noise = torch.arange(8.0)[:, None], stored_noise(20_000, 1, seed=6)
    log_p = log_probs_of_perplexity(20_000, 8, 1.1, 7.5, 7)
    mapped = FlowMap(codebook, 64)(noise, log_p).tokens_N
    assert share_that_differs(mapped, quantile_tokens(noise, log_p, codebook)) < 5e-4


@pytest.mark.parametrize("q", [0.5, 0.1, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("dim", [1, 3, 8])
def test_two_rows_share_the_space_by_a_plane_at_the_normal_quantile(q, dim):
    """The rarer row gets the noise beyond Phi^-1(1 - q) along the line between the two, however rare."""
    codebook = gaussian(2, dim, seed=8)
    line = torch.nn.functional.normalize(codebook[1] - codebook[0], dim=0)
    along = -torch.special.ndtri(torch.tensor(q, dtype=torch.float64)).float() + torch.linspace(-1, 1, 400)
    across = gaussian(400, dim, seed=9)
    noise = across - (across @ line)[:, None] * line + along[:, None] * line
    log_p = torch.tensor([math.log1p(-q), math.log(q)]).repeat(400, 1)
    mapped = FlowMap(codebook, default_num_steps(dim))(noise, log_p)
    assert mapped.tokens_N.tolist() == [0] * 200 + [1] * 200


def test_no_choice_needs_no_evaluation():
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
def test_identical_rows_are_one_point_and_the_likelier_takes_all(vocab_size):
    codebook = gaussian(vocab_size, 3, seed=13)
    codebook[[1, 4]] = codebook[2].clone()
    log_p = torch.full((50, vocab_size), -torch.inf)
    log_p[:, [1, 2, 4]] = torch.tensor([0.2, 0.5, 0.3]).log()
    assert FlowMap(codebook, 64)(stored_noise(50, 3, seed=14), log_p).tokens_N.tolist() == [2] * 50
    log_p[:, 3] = math.log(0.5)
    tokens = FlowMap(codebook, 64)(stored_noise(50, 3, seed=14), log_p).tokens_N
    assert set(tokens.tolist()) == {2, 3}


# Against the reference solver


BOUNDS = {16: 7e-3, 32: 1e-3, 64: 3e-4}


def check_agreement(reference, codebook, log_p, bounds=BOUNDS):
    """At each number of steps, at most this share of the tokens differs from the reference's."""
    noise = stored_noise(len(log_p), codebook.shape[1], seed=21)
    size = 2_000_000 // len(codebook)  # keeps the float64 reference within some hundred megabytes
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
    """Anisotropic codebook, top-k and top-p: rows on both sides of the size where gathering starts."""
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


def test_peaked_rows_agree_with_the_reference_where_the_choice_is_made(reference):
    """q = 1e-9 spread over 63 rows: noise far out, where other tokens than the top do win."""
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


# Stopping


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


# What callers rely on


def test_the_map_ignores_the_units_and_the_origin_of_the_codebook(log_probs_of_perplexity):
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


def test_gathering_and_the_whole_codebook_give_the_same_tokens(monkeypatch, log_probs_of_perplexity):
    log_p = filter_var(log_probs_of_perplexity(1_000, 1024, 1.2, 900, 67), 100, 0.0)
    flow_map, noise = FlowMap(gaussian(1024, 6, seed=68), 32), stored_noise(1_000, 6, seed=69)
    gathered = flow_map(noise, log_p)
    monkeypatch.setattr("generate_pairs.flow_map.flow_map.GATHER_MIN_VOCAB", 10**9)
    whole = flow_map(noise, log_p)
    assert torch.equal(gathered.tokens_N, whole.tokens_N)
    assert (gathered.num_evaluations_N - whole.num_evaluations_N).abs().max() <= 1


def test_filtered_tokens_never_appear(log_probs_of_perplexity):
    for vocab_size, top_k in ((64, 5), (2048, 5), (2048, 1500)):
        log_p = filter_var(log_probs_of_perplexity(400, vocab_size, 1.2, 60, 70), top_k, 0.0)
        mapped = FlowMap(gaussian(vocab_size, 3, seed=71), 16)(stored_noise(400, 3, seed=72), log_p)
        assert bool((log_p.gather(1, mapped.tokens_N[:, None]) > -torch.inf).all())


def test_same_call_same_result_and_inputs_untouched(log_probs_of_perplexity):
    log_p, noise = log_probs_of_perplexity(500, 64, 1.2, 60, 73), stored_noise(500, 3, seed=74).float()
    before = log_p.clone(), noise.clone()
    flow_map = FlowMap(gaussian(64, 3, seed=75), 64)
    first, second = flow_map(noise, log_p), flow_map(noise, log_p)
    assert torch.equal(first.tokens_N, second.tokens_N)
    assert torch.equal(first.num_evaluations_N, second.num_evaluations_N)
    assert torch.equal(log_p, before[0])
    assert torch.equal(noise, before[1])
    assert first.tokens_N.dtype == first.num_evaluations_N.dtype == torch.int64


def test_float16_noise_is_taken_exactly():
    flow_map, noise = FlowMap(gaussian(64, 3, seed=76), 32), stored_noise(500, 3, seed=77)
    log_p = gaussian(500, 64, seed=78)
    assert torch.equal(flow_map(noise, log_p).tokens_N, flow_map(noise.float(), log_p).tokens_N)


def test_an_empty_batch_maps_to_nothing():
    assert FlowMap(gaussian(64, 3, seed=79), 32)(torch.zeros(0, 3), torch.zeros(0, 64)).tokens_N.shape == (0,)


def test_the_global_matmul_precision_is_left_as_it_was():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        FlowMap(gaussian(8, 3, seed=80), 8)(stored_noise(2, 3, seed=81), torch.zeros(2, 8))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_golden_tokens():
    """Breaking change when these move: PAIR."""
    angle = torch.arange(16) * 0.7
    codebook = torch.stack((torch.cos(angle) * (1 + 0.1 * angle), torch.sin(angle), 0.05 * angle), dim=1)
    noise = torch.sin(torch.arange(24 * 3) * 1.3).view(24, 3) * 1.5
    log_p = torch.cos(torch.arange(24 * 16) * 0.37).view(24, 16) * 2
    mapped = FlowMap(codebook, 64)(noise.half(), log_p)
    assert mapped.tokens_N.tolist() == [
        2,
        15,
        1,
        4,
        6,
        2,
        5,
        8,
        11,
        6,
        10,
        13,
        8,
        11,
        14,
        0,
        13,
        15,
        1,
        13,
        0,
        2,
        5,
        9,
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_a_gpu_gives_the_same_tokens(log_probs_of_perplexity):
    for vocab_size, top_k in ((64, 0), (4096, 900), (4096, 300)):
        log_p = filter_var(log_probs_of_perplexity(4_000, vocab_size, 1.2, 0.9 * vocab_size, 82), top_k, 0.0)
        codebook, noise = gaussian(vocab_size, 8, seed=83), stored_noise(4_000, 8, seed=84)
        here = FlowMap(codebook, 32)(noise, log_p).tokens_N
        there = FlowMap(codebook, 32).to("cuda:0")(noise.cuda(), log_p.cuda()).tokens_N.cpu()
        assert share_that_differs(here, there) <= 5e-4


# Refusals


def test_bad_rows_are_named():
    flow_map = FlowMap(gaussian(8, 3, seed=90), 8)
    noise, log_p = torch.zeros(4, 3), torch.zeros(4, 8)
    for value, where, message in (
        (torch.nan, (2, 5), "row 2: log_probs holds NaN"),
        (torch.inf, (1, 0), "row 1: log_probs holds NaN or"),
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
        (torch.zeros(4, 3), torch.zeros(4, 8, device="meta"), "log_probs lies on meta, the flow map on cpu"),
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


# Candidates


@pytest.mark.parametrize("width", [5, 512, 1024, 1000])
def test_first_argmax_takes_the_lowest_index_on_ties(width):
    scores = torch.randint(0, 3, (200, width), generator=torch.Generator().manual_seed(91)).float()
    scores[0] = -torch.inf
    expected = [row.tolist().index(max(row.tolist())) for row in scores]
    assert first_argmax(scores).tolist() == expected


def test_gather_support_keeps_the_order_of_the_codebook():
    log_p = torch.tensor([[-torch.inf, -1.0, -torch.inf, -2.0], [-3.0, -torch.inf, -torch.inf, -torch.inf]])
    support, log_p_of_support = gather_support(log_p, 3)
    assert support.tolist() == [[1, 3, 0], [0, 0, 0]]
    assert log_p_of_support.tolist() == [[-1.0, -2.0, -torch.inf], [-3.0, -torch.inf, -torch.inf]]
