"""The flow map step by step: exponential Adams of third order, every operation on all rows of a batch.

`flow_map.py` lists the equations. `triton_kernel.py` computes the same in one GPU kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generate_pairs.flow_map.candidates import Candidates, first_argmax

# A row stops when the weight of all tokens but the best is below this share of their weight before the flow.
STOP_SHARE = 0.05

# A candidate counts as impossible if its weight, relative to the best one, is below this.
LEAST_WEIGHT = 1e-34
CLAMPED_SCORE = math.log(LEAST_WEIGHT) - 1


@dataclass(frozen=True)
class MappedTokens:
    """The token of each row and the number of evaluations of D that it took, both int64."""

    tokens_N: Tensor
    num_evaluations_N: Tensor


def solve(
    candidates: Candidates,
    log_p_NK: Tensor,
    noise_NC: Tensor,
    predictor: Sequence[Sequence[float]],
    corrector: Sequence[Sequence[float]],
    stop: bool,
) -> MappedTokens:
    """Solve equation (5) for rows of one layout, with codebook rows in units of each row's pair scale s.

    Log-probabilities (the largest of each row is 0) and noise are float32; predictor and corrector are the coefficients
    of `adams_coefficients`. With `stop`, a row stops as soon as its token is settled.
    """
    tokens_N, flow = _start(candidates, log_p_NK, noise_NC)
    mapped = MappedTokens(tokens_N, torch.zeros_like(tokens_N))
    buffer = torch.empty_like(flow.log_p_MK)
    for step, (predict, correct) in enumerate(zip(predictor, corrector, strict=True)):
        if len(flow.row_M) == 0:
            break
        u = (step + 1) / (len(predictor) - step)
        guess_MC = _advance(flow.position_MC, predict, flow.history)
        top_M, others_M, mean_MC = _evaluate(flow, guess_MC, u, buffer)
        flow.token_M = torch.where(flow.moving_M, top_M, flow.token_M)
        flow.num_evaluations_M += flow.moving_M
        flow.history = (mean_MC / flow.scale_M1, *flow.history[:3])
        flow.position_MC = _advance(flow.position_MC, correct, flow.history)
        if stop:
            flow.moving_M &= others_M >= flow.threshold_M
            flow = flow.compacted(mapped)
    flow.store(mapped)
    return mapped


@dataclass
class _Flow:
    """State of the rows of one batch that are not finished; `history` is D / s at the last nodes, newest first."""

    row_M: Tensor
    candidates: Candidates
    log_p_MK: Tensor
    scale_M1: Tensor
    threshold_M: Tensor
    position_MC: Tensor
    history: tuple[Tensor, ...]
    moving_M: Tensor
    token_M: Tensor
    num_evaluations_M: Tensor

    def keep(self, rows_L: Tensor) -> _Flow:
        """The state of these rows only."""
        tensors = {name: value[rows_L] for name, value in vars(self).items() if isinstance(value, Tensor)}
        history = tuple(mean_MC[rows_L] for mean_MC in self.history)
        return _Flow(candidates=self.candidates.keep(rows_L), history=history, **tensors)

    def store(self, mapped: MappedTokens) -> None:
        """Write the rows' tokens to the result."""
        mapped.tokens_N[self.row_M] = self.token_M
        mapped.num_evaluations_N[self.row_M] = self.num_evaluations_M

    def compacted(self, mapped: MappedTokens) -> _Flow:
        """Store and drop the rows that have stopped, if they are enough to pay for copying the others."""
        moving = self.moving_M.nonzero().squeeze(1)
        if 4 * len(moving) > 3 * len(self.row_M):
            return self
        self.store(mapped)
        return self.keep(moving)


def _start(candidates: Candidates, log_p_NK: Tensor, noise_NC: Tensor) -> tuple[Tensor, _Flow]:
    """The most probable token of each row, and the initial state of the rows that need steps.

    With m the most probable token, q = sum_{j != m} p_j (summed over the others: 1 - p_m is 0 in peaked rows) and
    d_j = c_j - c_m, the pair scale s is the spread of two draws that differ:

        (7)  s^2 = (sum_{j != m} p_j |d_j|^2 - |sum_{j != m} p_j d_j|^2) / (C (2 q - q^2 - sum_{j != m} p_j^2))

    Returns:
        m (N,), which is the token if q = 0 or s^2 is not finite and positive; and the state of the other rows.
    """
    top_N = first_argmax(log_p_NK)
    weights_NK = _weights(log_p_NK.clone()).scatter_(1, top_N[:, None], 0.0)
    moments_NF = candidates.moments(weights_NK)
    total_N1 = 1 + moments_NF[:, -1:]
    moments_NF = moments_NF / total_N1
    first_NC, second_N, q_N = moments_NF[:, :-2], moments_NF[:, -2], moments_NF[:, -1]
    top_NC = candidates.rows(top_N)
    square_N = q_N * top_NC.square().sum(dim=1)
    variance_N = second_N - 2 * (top_NC * first_NC).sum(dim=1) + square_N
    variance_N = variance_N - (first_NC - q_N[:, None] * top_NC).square().sum(dim=1)
    square_sum_N = (torch.linalg.vector_norm(weights_NK, dim=1) / total_N1.squeeze(1)).square()
    pairs_N = 2 * q_N - q_N.square() - square_sum_N
    scale_N1 = (variance_N / (noise_NC.shape[1] * pairs_N)).sqrt()[:, None]
    # A variance as small as the rounding error of its terms counts as zero.
    resolved_N = variance_N > 8 * torch.finfo(torch.float32).eps * (second_N + square_N)
    is_open_N = resolved_N & torch.isfinite(scale_N1).squeeze(1)
    mean_NC = first_NC + (1 - q_N[:, None]) * top_NC
    flow = _Flow(
        row_M=torch.arange(len(top_N), device=top_N.device),
        candidates=candidates,
        log_p_MK=log_p_NK,
        scale_M1=scale_N1,
        threshold_M=STOP_SHARE * q_N,
        position_MC=noise_NC,
        history=(mean_NC / scale_N1,),
        moving_M=is_open_N,
        token_M=top_N,
        num_evaluations_M=torch.zeros_like(top_N),
    )
    return top_N, flow if bool(is_open_N.all()) else flow.keep(is_open_N.nonzero().squeeze(1))


def _evaluate(flow: _Flow, position_MC: Tensor, u: float, buffer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Equations (5) and (6) at position w, with u in units of 1/s.

    Returns:
        argmax pi (M,), the sum of the other pi (M,), and D (M, C).
    """
    rate_M1 = u / flow.scale_M1
    query_MF = torch.cat((position_MC * rate_M1, -0.5 * rate_M1.square(), torch.zeros_like(rate_M1)), dim=1)
    weights_MK = buffer[: len(query_MF)]
    flow.candidates.scores(flow.log_p_MK, query_MF, weights_MK)
    top_M = first_argmax(weights_MK)
    top_M1 = top_M[:, None]
    _weights(weights_MK.sub_(weights_MK.gather(1, top_M1)))
    # The best weight is 1. Without it, the last moment is the sum over the others, accurate even if tiny.
    moments_MF = flow.candidates.moments(weights_MK.scatter_(1, top_M1, 0.0))
    others_M1 = moments_MF[:, -1:]
    mean_MC = (moments_MF[:, :-2] + flow.candidates.rows(top_M)) / (1 + others_M1)
    return top_M, (others_M1 / (1 + others_M1)).squeeze(1), mean_MC


def _weights(scores_NK: Tensor) -> Tensor:
    """exp of scores, the largest of each row 0, in place; results below `LEAST_WEIGHT` become 0."""
    # Clamped, because exp is much slower if its result is too small for a normal float32.
    return torch.threshold_(scores_NK.clamp_(min=CLAMPED_SCORE).exp_(), LEAST_WEIGHT, 0.0)


def _advance(position_NC: Tensor, coefficients: Sequence[float], history: tuple[Tensor, ...]) -> Tensor:
    """One step of equation (8): w + sum_k b_k D_k over the nodes that exist."""
    for coefficient, mean_NC in zip(coefficients, history, strict=False):
        position_NC = torch.add(position_NC, mean_NC, alpha=coefficient)
    return position_NC
