"""Two implementations of the same work, to be timed alternately, and a check that their results agree."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from official_code import OfficialStudent, OfficialTeacher, SequenceEnd
from torch import Tensor

from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.trajectory import Choice, Draw, MapNoise, generate_tokens


@dataclass(frozen=True)
class Difference:
    """The largest difference of two outputs, and the largest number in them."""

    worst: float = 0.0
    largest: float = 0.0

    def and_of(self, first: Tensor, second: Tensor) -> Difference:
        """The larger of this difference and that of two more tensors."""
        # A comparison with NaN is always false, so it would be missed.
        worst = (first - second).abs().nan_to_num(nan=torch.inf).max().item()
        return Difference(max(self.worst, worst), max(self.largest, second.abs().max().item()))


@dataclass(frozen=True)
class Comparison:
    """Two implementations of the same work; `difference` runs both, None if they need not agree."""

    first: Callable[[], object]
    second: Callable[[], object]
    difference: Callable[[], Difference] | None = None


def teacher_comparison(
    official: OfficialTeacher,
    teacher: Teacher,
    settings: SamplingSettings,
    labels_B: Tensor,
    num_steps: int,
) -> Comparison:
    """The official sampling loop, then Tokenleap's with multinomial draws, both up to the last token's draw.

    Args:
        official: a LlamaGen or a VAR.
        teacher: the same, with the same weights.
        settings: guidance and filters.
        labels_B: classes, int64.
        num_steps: number of AR steps, from the first.
    """
    return Comparison(
        partial(official.sample, labels_B, settings, num_steps),
        partial(_walk, teacher, settings, labels_B, num_steps, _draws(teacher, labels_B)),
        partial(_forced_difference, official, teacher, settings, labels_B, num_steps),
    )


def student_comparison(
    official: OfficialStudent, student: Any, shape_LC: tuple[int, int], labels_B: Tensor
) -> Comparison:
    """One pass of the official student over noise, then one of Tokenleap's network, with the same weights."""
    noise_BLC = _noise((len(labels_B), *shape_LC), labels_B)

    @torch.inference_mode()
    def ours() -> tuple[Tensor, Tensor]:
        return student(noise_BLC, torch.zeros_like(labels_B), labels_B)

    theirs = partial(official.predict, noise_BLC, labels_B)

    def difference() -> Difference:
        found = Difference()
        for pair in zip(ours(), theirs(), strict=True):
            found = found.and_of(*pair)
        return found

    return Comparison(theirs, ours, difference)


def map_comparison(
    teacher: Teacher, settings: SamplingSettings, labels_B: Tensor, num_steps: int, solver_steps: int
) -> Comparison:
    """Tokenleap's sampling loop with multinomial draws, then with the flow map, both up to the last token."""
    noise_BLC = _noise((len(labels_B), teacher.layout.num_tokens, teacher.codebook_dim), labels_B)
    flow_map = FlowMap(teacher.codebook_VC.detach(), solver_steps)
    walk_by = partial(_walk, teacher, settings, labels_B, num_steps)
    return Comparison(partial(walk_by, _draws(teacher, labels_B)), partial(walk_by, MapNoise(flow_map, noise_BLC)))


def _noise(shape_BLC: tuple[int, int, int], like: Tensor) -> Tensor:
    return torch.randn(shape_BLC, generator=torch.Generator().manual_seed(0)).to(like.device)


def _draws(teacher: Teacher, labels_B: Tensor) -> Draw:
    shape, generator = (len(labels_B), teacher.layout.num_tokens), torch.Generator().manual_seed(0)
    return Draw(torch.rand(shape, dtype=torch.float64, generator=generator).to(labels_B.device))


def _walk(teacher: Teacher, settings: SamplingSettings, labels_B: Tensor, num_steps: int, choose: Choice) -> None:
    """`generate_tokens` up to the choice of the last of `num_steps` AR steps, where the official loop ends too."""
    end = teacher.layout.starts[num_steps]

    def choose_or_end(log_probs_BsV: Tensor, span: slice) -> Tensor:
        tokens_Bs = choose(log_probs_BsV, span)
        if span.stop == end:
            raise SequenceEnd
        return tokens_Bs

    with suppress(SequenceEnd):
        generate_tokens(teacher, labels_B, settings, choose_or_end)


def _forced_difference(
    official: OfficialTeacher, teacher: Teacher, settings: SamplingSettings, labels_B: Tensor, num_steps: int
) -> Difference:
    """The difference of the guided logits of all steps, given the same random tokens."""
    layout, generator = teacher.layout, torch.Generator().manual_seed(0)
    shape = (len(labels_B), layout.num_tokens)
    tokens_BL = torch.randint(teacher.vocab_size, shape, generator=generator).to(labels_B.device)
    decoding = teacher.start(labels_B, settings.guidance_scale)
    found, step = Difference(), 0

    def on_logits(logits_BsV: Tensor) -> Tensor:
        nonlocal found, step
        tokens_Bs = tokens_BL[:, layout.span(step)]
        found, step = found.and_of(decoding.logits(), logits_BsV), step + 1
        decoding.append(tokens_Bs)
        return tokens_Bs

    official.sample(labels_B, settings, num_steps, on_logits)
    if step != num_steps:
        raise RuntimeError(f"the official code drew the tokens of {step} steps, not of {num_steps}")
    return found
