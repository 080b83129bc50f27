"""Generation of token sequences by a teacher: one loop for every way of choosing tokens.

The choice is an argument, such as the flow map (it maps each position's own noise to its token) or a multinomial draw.
With the flow map the sequence is a function of the noise, see section 3 of Distilled Decoding 1 (arXiv 2412.17153).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from generate_pairs.compute.float32 import full_float32
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.filtering import SamplingSettings

Choice = Callable[[Tensor, slice], Tensor]
"""(log-probabilities (B, s, V) of one AR step, its positions) -> tokens (B, s), int64."""


@dataclass(frozen=True)
class MapNoise:
    """Choose by the flow map: position l's noise determines position l's token."""

    flow_map: FlowMap
    noise_BLC: Tensor

    def __call__(self, log_probs_BsV: Tensor, span: slice) -> Tensor:
        B, s, V = log_probs_BsV.shape
        noise_NC = self.noise_BLC[:, span].reshape(B * s, -1)
        return self.flow_map(noise_NC, log_probs_BsV.reshape(B * s, V)).tokens_N.view(B, s)


@dataclass(frozen=True)
class Draw:
    """Choose by independent draws, as AR models are usually sampled.

    Position l's own uniform number determines its token, so a sequence does not depend on its batch.
    """

    uniform_BL: Tensor
    """Numbers in (0, 1), float64, on the device of the log-probabilities."""

    def __call__(self, log_probs_BsV: Tensor, span: slice) -> Tensor:
        return draw(log_probs_BsV.exp(), self.uniform_BL[:, span])


def draw(P_BsV: Tensor, uniform_Bs: Tensor) -> Tensor:
    """The first token at which the cumulative probability, in the order of the codebook, exceeds a uniform number.

    Probabilities may have any floating-point dtype and any sum but zero; the numbers are float64, in (0, 1). Tokens
    (B, s) are int64, none of probability zero.
    """
    possible_BsV = P_BsV > 0
    sums_BsV = P_BsV.double().cumsum(dim=-1)
    goal_Bs1 = uniform_Bs.unsqueeze(-1) * sums_BsV[..., -1:]
    # On a GPU the order of summation varies with the token, so a sum may also grow at an impossible token.
    exceeds_BsV = (sums_BsV > goal_Bs1) & possible_BsV
    last_Bs = possible_BsV.shape[-1] - 1 - possible_BsV.flip(-1).byte().argmax(dim=-1)
    return torch.where(exceeds_BsV.any(dim=-1), exceeds_BsV.byte().argmax(dim=-1), last_Bs)


@torch.inference_mode()
@full_float32()
def generate_tokens(
    teacher: Teacher,
    labels_B: Tensor,
    settings: SamplingSettings,
    choose: Choice,
    *,
    prefix_BP: Tensor | None = None,
    num_steps: int | None = None,
) -> Tensor:
    """Generate token sequences, AR step by AR step, with a teacher in eval mode.

    Args:
        prefix_BP: the given tokens of the first AR steps; generation continues after them.
        num_steps: the number of AR steps in the result, the prefix included; None for all.

    Returns:
        Tokens (B, L), int64, in the teacher's order, or those of the first `num_steps` steps.

    Raises:
        ValueError: the prefix ends inside an AR step, or leaves no step to generate.
    """
    layout = teacher.layout
    num_steps = layout.num_steps if num_steps is None else num_steps
    shape = (len(labels_B), layout.starts[num_steps])
    tokens_BL = torch.empty(shape, dtype=torch.int64, device=labels_B.device)
    decoding = teacher.start(labels_B, settings.guidance_scale)
    first = 0
    if prefix_BP is not None:
        length = prefix_BP.shape[1]
        if length not in layout.starts[:num_steps]:
            raise ValueError(f"a prefix of {length} tokens does not end before one of the AR steps to generate")
        first = layout.starts.index(length)
        tokens_BL[:, :length] = prefix_BP
        decoding.prefill([tokens_BL[:, layout.span(step)] for step in range(first)])
    for step in range(first, num_steps):
        span = layout.span(step)
        log_probs_BsV = teacher.filter(decoding.logits(), settings)
        tokens_BL[:, span] = choose(log_probs_BsV, span)
        decoding.append(tokens_BL[:, span])
    return tokens_BL
