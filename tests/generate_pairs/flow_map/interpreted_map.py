"""Run the flow map's kernel in triton's interpreter, on a CPU, and compare it with the flow map; print JSON.

This is a separate program because triton reads TRITON_INTERPRET=1 when it is imported.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.filtering import filter_var

STEPS = 8


def rows(num_rows: int, vocab_size: int, codebook_dim: int, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """A codebook, noise and log-probabilities."""
    generator = torch.Generator().manual_seed(vocab_size)
    shapes = (vocab_size, codebook_dim), (num_rows, codebook_dim), (num_rows, vocab_size)
    codebook_VC, noise_NC, logits_NV = (torch.randn(*shape, generator=generator) for shape in shapes)
    return codebook_VC, noise_NC, filter_var(3 * logits_NV, top_k, 0.0)


def without_choice() -> tuple[Tensor, Tensor, Tensor]:
    """A row with one possible token, one with two identical rows, and one with a tie of the most probable tokens."""
    codebook_VC, noise_NC, log_p_NV = rows(3, 16, 2, 0)
    codebook_VC[5] = codebook_VC[3]
    log_p_NV[:] = -torch.inf
    log_p_NV[0, 7] = 0.0
    log_p_NV[1, [3, 5]] = torch.tensor([0.25, 0.75]).log()
    log_p_NV[2, [4, 9, 11]] = torch.tensor([0.4, 0.4, 0.2]).log()
    return codebook_VC, noise_NC, log_p_NV


def close_together() -> tuple[Tensor, Tensor, Tensor]:
    """Three possible tokens of a large codebook, at distances of 1e-4 of its extent."""
    codebook_VC, noise_NC, log_p_NV = rows(6, 1024, 8, 3)
    codebook_VC[[7, 500, 900]] = codebook_VC[7] + 1e-4 * torch.eye(3, 8)
    log_p_NV[:] = -torch.inf
    log_p_NV[:, [7, 500, 900]] = torch.tensor([0.35, 0.33, 0.32]).log()
    return codebook_VC, noise_NC, log_p_NV


def tied_across_tiles() -> tuple[Tensor, Tensor, Tensor]:
    """The two most probable tokens tie and are one point, in the same lane of two tiles: the first one wins."""
    codebook_VC, noise_NC, log_p_NV = rows(2, 1100, 32, 0)
    codebook_VC[771] = codebook_VC[3]
    log_p_NV = log_p_NV + torch.tensor(0.05).log()
    log_p_NV[:, [3, 771]] = torch.tensor(0.475).log()
    return codebook_VC, noise_NC, log_p_NV


CASES = {
    "whole codebook": (rows(5, 40, 3, 0), True),
    "to the last step": (rows(4, 40, 2, 0), False),
    "one dimension": (rows(4, 40, 1, 0), True),
    "few of many": (rows(6, 1024, 8, 60), True),
    "many of many": (rows(4, 1024, 8, 400), True),
    "close together": (close_together(), True),
    "tied across tiles": (tied_across_tiles(), True),
    "no choice": (without_choice(), True),
}


def main() -> None:
    results = {}
    for name, ((codebook_VC, noise_NC, log_p_NV), stop) in CASES.items():
        flow_map = FlowMap(codebook_VC, STEPS)
        expected = flow_map(noise_NC, log_p_NV, stop)
        fused = flow_map._by_kernel(noise_NC, log_p_NV, log_p_NV.amax(dim=1, keepdim=True), stop)
        results[name] = {
            "tokens": int((fused.tokens_N != expected.tokens_N).sum()),
            "evaluations": int((fused.num_evaluations_N != expected.num_evaluations_N).sum()),
            "steps": expected.num_evaluations_N.tolist(),
            "taken": expected.tokens_N.tolist(),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
