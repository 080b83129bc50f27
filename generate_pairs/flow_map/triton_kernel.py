"""The flow map as one GPU kernel: one program per position, from its noise to its token.

`solver.py` would launch a thousand small kernels per AR step, and the GPU would spend nine tenths of the time waiting
for launches. The mathematics is that of `solver.py`; only rounding differs. The kernel needs triton, which comes with
torch's builds for GPUs on Linux, and to build it a C compiler and Python's headers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192
"""Numbers of the codebook that one program processes at a time."""
NUM_WARPS = 8


def map_rows(
    noise_NC: Tensor,
    log_probs_NV: Tensor,
    peak_N1: Tensor,
    codebook_VC: Tensor,
    predictor_S3: Tensor,
    corrector_S4: Tensor,
    *,
    stop_share: float,
    least_weight: float,
    narrow_size: int,
) -> tuple[Tensor, Tensor]:
    """Map N positions to tokens and numbers of evaluations of D, both int64. All inputs are float32 on one GPU.

    Args:
        peak_N1: the largest log-probability of each row.
        codebook_VC: the codebook, standardised.
        predictor_S3: coefficients of S steps, see `adams_coefficients`.
        corrector_S4: as `predictor_S3`.
        stop_share: as `solver.STOP_SHARE`; 0 runs all steps.
        least_weight: as `solver.LEAST_WEIGHT`.
        narrow_size: with at most this many possible tokens, codebook rows are taken relative to the most probable one.
    """
    (N, V), C = log_probs_NV.shape, codebook_VC.shape[1]
    tokens_N, evaluations_N = (torch.empty(N, dtype=torch.int64, device=noise_NC.device) for _ in range(2))
    # The possible tokens of each row and their log-probabilities, packed to its front.
    support_NV = torch.empty(N, V, dtype=torch.int32, device=noise_NC.device)
    packed_NV = torch.empty(N, V, dtype=torch.float32, device=noise_NC.device)
    inputs = (noise_NC, log_probs_NV, peak_N1, codebook_VC, predictor_S3, corrector_S4)
    block_C = triton.next_power_of_2(C)
    if N:
        _map_row[(N,)](
            *(tensor.contiguous() for tensor in inputs),
            support_NV,
            packed_NV,
            tokens_N,
            evaluations_N,
            V,
            len(predictor_S3),
            stop_share,
            least_weight,
            narrow_size,
            C=C,
            BLOCK_C=block_C,
            BLOCK_K=max(1, TILE // block_C),
            num_warps=NUM_WARPS,
        )
    return tokens_N, evaluations_N


@triton.jit
def _map_row(
    noise_NC,
    log_probs_NV,
    peak_N1,
    codebook_VC,
    predictor_S3,
    corrector_S4,
    support_NV,
    packed_NV,
    tokens_N,
    evaluations_N,
    V,
    num_steps,
    stop_share,
    least_weight,
    narrow_size,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_C)
    support_K, packed_K = support_NV + row * V, packed_NV + row * V
    K = _pack(log_probs_NV + row * V, tl.load(peak_N1 + row), support_K, packed_K, V, BLOCK_K)

    # Before the flow, see `_start` in solver.py.
    none_C = tl.zeros([BLOCK_C], tl.float32)
    top = _likeliest(support_K, packed_K, K, codebook_VC, none_C, none_C, 0.0, C, BLOCK_C, BLOCK_K)
    top_C = _row(support_K, top, codebook_VC, c, C)
    origin_C = tl.where(narrow_size >= K, top_C, none_C)
    total, squares, first_C, second = _others(
        support_K, packed_K, K, codebook_VC, origin_C, none_C, 0.0, top, least_weight, C, BLOCK_C, BLOCK_K
    )
    top_C -= origin_C
    q, first_C, second = total / (1 + total), first_C / (1 + total), second / (1 + total)
    square = q * tl.sum(top_C * top_C, 0)
    apart_C = first_C - q * top_C
    variance = second - 2 * tl.sum(top_C * first_C, 0) + square - tl.sum(apart_C * apart_C, 0)
    pairs = 2 * q - q * q - squares / ((1 + total) * (1 + total))
    scale = tl.sqrt(variance / (C * pairs))
    # 2^-20 is 8 eps; NaN compares false.
    moving = (variance > 9.5367431640625e-07 * (second + square)) & (scale < float("inf"))

    position_C = tl.load(noise_NC + row * C + c, mask=c < C, other=0.0)
    mean0_C = (first_C + (1 - q) * top_C) / scale
    # Two different expressions for zero: if loop-carried values start as the same value, triton 3.6 and 3.9 treat them
    # as one variable.
    mean1_C, mean2_C = 0.0 * position_C, 0.0 * first_C
    step = 0
    while moving:
        weights = predictor_S3 + 3 * step
        guess_C = position_C + tl.load(weights) * mean0_C
        guess_C += tl.load(weights + 1) * mean1_C + tl.load(weights + 2) * mean2_C
        rate = (step + 1) / (num_steps - step) / scale
        top = _likeliest(support_K, packed_K, K, codebook_VC, origin_C, guess_C, rate, C, BLOCK_C, BLOCK_K)
        total, squares, first_C, second = _others(
            support_K, packed_K, K, codebook_VC, origin_C, guess_C, rate, top, least_weight, C, BLOCK_C, BLOCK_K
        )
        mean3_C, mean2_C, mean1_C = mean2_C, mean1_C, mean0_C
        # Subtracting first keeps the digits of close rows.
        top_C = _row(support_K, top, codebook_VC, c, C) - origin_C
        mean0_C = (first_C + top_C) / (1 + total) / scale
        weights = corrector_S4 + 4 * step
        position_C += tl.load(weights) * mean0_C + tl.load(weights + 1) * mean1_C
        position_C += tl.load(weights + 2) * mean2_C + tl.load(weights + 3) * mean3_C
        step += 1
        moving = (step < num_steps) & (total / (1 + total) >= stop_share * q)
    tl.store(tokens_N + row, tl.load(support_K + top).to(tl.int64))
    tl.store(evaluations_N + row, step)


@triton.jit
def _pack(log_probs_V, peak, support_K, packed_K, V, BLOCK_K: tl.constexpr):
    """Write the possible tokens in ascending order and log p minus the peak; return how many there are."""
    k, count = tl.arange(0, BLOCK_K), 0
    for first in range(0, V, BLOCK_K):
        log_p = tl.load(log_probs_V + first + k, mask=first + k < V, other=-float("inf"))
        is_possible = log_p > -float("inf")
        place = count + tl.cumsum(is_possible.to(tl.int32), 0) - 1
        tl.store(support_K + place, first + k, mask=is_possible)
        tl.store(packed_K + place, log_p - peak, mask=is_possible)
        count += tl.sum(is_possible.to(tl.int32), 0)
    # Other threads read what was written.
    tl.debug_barrier()
    return count


@triton.jit
def _row(support_K, k, codebook_VC, c, C: tl.constexpr):
    return tl.load(codebook_VC + tl.load(support_K + k) * C + c, mask=c < C, other=0.0)


@triton.jit
def _scored(support_K, packed_K, k, K, codebook_VC, origin_C, guess_C, rate, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """log p + u <w, c> - u^2 |c|^2 / 2 of the candidates `k`, -inf past the last one; and c and |c|^2."""
    c, is_valid = tl.arange(0, BLOCK_C), k < K
    token = tl.load(support_K + k, mask=is_valid, other=0)
    place, mask = token[:, None] * C + c[None, :], is_valid[:, None] & (c < C)[None, :]
    rows_KC = tl.load(codebook_VC + place, mask=mask, other=0.0) - origin_C[None, :]
    square_K = tl.sum(rows_KC * rows_KC, 1)
    score_K = tl.load(packed_K + k, mask=is_valid, other=-float("inf"))
    score_K += tl.sum(rows_KC * (rate * guess_C)[None, :], 1) - 0.5 * rate * rate * square_K
    return score_K, rows_KC, square_K


@triton.jit
def _likeliest(
    support_K,
    packed_K,
    K,
    codebook_VC,
    origin_C,
    guess_C,
    rate,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The candidate with the largest score, the first one on ties."""
    lane = tl.arange(0, BLOCK_K)
    best = tl.full([BLOCK_K], -float("inf"), tl.float32)
    index = tl.zeros([BLOCK_K], tl.int32)
    for first in range(0, K, BLOCK_K):
        k = first + lane
        score_K, _, _ = _scored(support_K, packed_K, k, K, codebook_VC, origin_C, guess_C, rate, C, BLOCK_C)
        index = tl.where(score_K > best, k, index)
        best = tl.maximum(score_K, best)
    return tl.min(tl.where(best == tl.max(best, 0), index, 2147483647), 0)


@triton.jit
def _others(
    support_K,
    packed_K,
    K,
    codebook_VC,
    origin_C,
    guess_C,
    rate,
    top,
    least_weight,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sums over all candidates except `top`, whose weight is 1: of weights, their squares, weighted c and |c|^2."""
    lane = tl.arange(0, BLOCK_K)
    # The same arithmetic as below.
    top_score, _, _ = _scored(support_K, packed_K, top + 0 * lane, K, codebook_VC, origin_C, guess_C, rate, C, BLOCK_C)
    best = tl.max(top_score, 0)
    total = tl.zeros([BLOCK_K], tl.float32)
    squares, second = total, total
    first_KC = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + lane
        score_K, rows_KC, square_K = _scored(support_K, packed_K, k, K, codebook_VC, origin_C, guess_C, rate, C, BLOCK_C)
        weight_K = tl.exp(score_K - best)
        weight_K = tl.where((weight_K > least_weight) & (k != top), weight_K, 0.0)
        total += weight_K
        squares += weight_K * weight_K
        second += weight_K * square_K
        first_KC += weight_K[:, None] * rows_KC
    return tl.sum(total, 0), tl.sum(squares, 0), tl.sum(first_KC, 0), tl.sum(second, 0)
