"""The walk of a teacher over its sequence: one loop for every way of choosing tokens.

The choice is passed in: the flow map (which turns a position's own noise into its token), a multinomial draw, or
tokens that are given. See section 3 of Distilled Decoding 1 (arXiv 2412.17153): the flow map makes the whole
sequence a function of the noise.
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
"""(log-probabilities (B, s, V) of one AR step, the positions it makes) -> tokens (B, s), int64."""


@dataclass(frozen=True)
class MapNoise:
    """Choose by the flow map: position l's noise becomes position l's token."""

    flow_map: FlowMap
    noise_BLC: Tensor

    def __call__(self, log_probs_BsV: Tensor, span: slice) -> Tensor:
        B, s, V = log_probs_BsV.shape
        noise_NC = self.noise_BLC[:, span].reshape(B * s, -1)
        return self.flow_map(noise_NC, log_probs_BsV.reshape(B * s, V)).tokens_N.view(B, s)


@dataclass(frozen=True)
class Draw:
    """Choose by independent draws, the way AR models are usually sampled.

    Position l's own uniform number becomes its token, so that a sequence is the same in any batch.
    """

    uniform_BL: Tensor
    """Numbers between 0 and 1, float64, on the device of the log-probabilities."""

    def __call__(self, log_probs_BsV: Tensor, span: slice) -> Tensor:
        return draw(log_probs_BsV.exp(), self.uniform_BL[:, span])


def draw(P_BsV: Tensor, uniform_Bs: Tensor) -> Tensor:
    """The token at which the probabilities, summed up in the codebook's order, pass a uniform number.

    Args:
        P_BsV: probabilities, of any floating-point type; they need not sum to one, but not all are zero.
        uniform_Bs: between 0 and 1, both excluded, float64.

    Returns:
        Tokens (B, s), int64, none of probability zero.
    """
    possible_BsV = P_BsV > 0
    sums_BsV = P_BsV.double().cumsum(dim=-1)
    goal_Bs1 = uniform_Bs.unsqueeze(-1) * sums_BsV[..., -1:]
    # A GPU sums in another order for every place, so that a sum may be off by rounding at an impossible token, too.
    passed_BsV = (sums_BsV > goal_Bs1) & possible_BsV
    last_Bs = possible_BsV.shape[-1] - 1 - possible_BsV.flip(-1).byte().argmax(dim=-1)
    return torch.where(passed_BsV.any(dim=-1), passed_BsV.byte().argmax(dim=-1), last_Bs)


@dataclass(frozen=True)
class Force:
    """Choose the tokens that are given, whatever the teacher thinks of them."""

    tokens_BL: Tensor

    def __call__(self, log_probs_BsV: Tensor, span: slice) -> Tensor:
        return self.tokens_BL[:, span]


@torch.inference_mode()
@full_float32()
def walk(
    teacher: Teacher,
    labels_B: Tensor,
    settings: SamplingSettings,
    choose: Choice,
    *,
    prefix_BP: Tensor | None = None,
    num_steps: int | None = None,
) -> Tensor:
    """Make token sequences, AR step by AR step.

    Args:
        teacher: in eval mode.
        labels_B: class labels, int64.
        settings: guidance and filters, in the teacher's own convention.
        choose: how a step's tokens follow from its log-probabilities.
        prefix_BP: tokens of whole AR steps that are there already, the first ones; the walk goes on after them.
        num_steps: the AR step to stop before; None for the end.

    Returns:
        Tokens (B, L), int64, in the teacher's order; those of the first `num_steps` steps, the prefix among them.

    Raises:
        ValueError: a prefix that ends inside an AR step, or does not leave one.
    """
    layout = teacher.layout
    num_steps = layout.num_steps if num_steps is None else num_steps
    shape = (len(labels_B), layout.starts[num_steps])
    tokens_BL = torch.empty(shape, dtype=torch.int64, device=labels_B.device)
    decoding = teacher.start(labels_B, settings.guidance_scale)
    first = 0
    if prefix_BP is not None:
        if prefix_BP.shape[1] not in layout.starts[:num_steps]:
            raise ValueError(
                f"a prefix of {prefix_BP.shape[1]} tokens does not end before one of the AR steps to make"
            )
        first = layout.starts.index(prefix_BP.shape[1])
        tokens_BL[:, : prefix_BP.shape[1]] = prefix_BP
        decoding.prefill([tokens_BL[:, layout.span(step)] for step in range(first)])
    for step in range(first, num_steps):
        span = layout.span(step)
        log_probs_BsV = teacher.filter(decoding.logits(), settings)
        tokens_BL[:, span] = choose(log_probs_BsV, span)
        decoding.append(tokens_BL[:, span])
    return tokens_BL
