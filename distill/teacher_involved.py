"""Sampling with the teacher in between: pre-trained-n-m of Distilled Decoding 1 (arXiv 2412.17153, Table 2).

The paper counts states of the trajectory from 1, all noise. The teacher re-makes its AR steps n - 1 .. m - 2, counted
from 0, and the student finishes from there, at timestep m - 1. Where n > 1, a first pass of the student makes what the
teacher goes on from, snapped to codebook rows. Positions after that keep the image's own noise.

The official VAR sampler lets the teacher look at this prefix without its causal mask. Here a token sees what came before
it, as in the teacher's own walk; the official LlamaGen sampler does the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.student import Sequence, Student
from generate_pairs.teachers.base import Teacher, TokenLayout
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.trajectory import Choice, walk
from shards.core.errors import Refused


@dataclass(frozen=True)
class PreTrained:
    """pre-trained-n-m: `first` is n, `last` is m, both counted from 1 as in the paper.

    The teacher draws its tokens or, in pre-trained-n-m-flow, maps each position's own noise to them.
    """

    first: int
    last: int
    from_noise: bool = False

    @property
    def name(self) -> str:
        return f"pre-trained-{self.first}-{self.last}{'-flow' if self.from_noise else ''}"

    def num_steps(self, layout: TokenLayout) -> int:
        """Network passes that make one image, as the paper counts them: a guided pass is one, and so is a prefix."""
        finishes = self.last - 1 < layout.num_steps
        return (self.first > 1) + (self.last - self.first) + finishes

    @classmethod
    def parse(cls, name: str, layout: TokenLayout) -> PreTrained:
        """The method of this name.

        Raises:
            Refused: it has another form, or steps that the teacher does not have.
        """
        found = re.fullmatch(r"pre-trained-(\d+)-(\d+)(-flow)?", name)
        if found is None:
            raise Refused(
                f"{name!r} is no teacher-involved method: write pre-trained-N-M or pre-trained-N-M-flow, as in "
                "pre-trained-1-6"
            )
        method = cls(int(found[1]), int(found[2]), found[3] is not None)
        if not 1 <= method.first < method.last <= layout.num_steps + 1:
            raise Refused(
                f"{name}: this teacher has {layout.num_steps} AR steps, so 1 <= N < M <= {layout.num_steps + 1}"
            )
        return method


def usual_methods(timesteps: tuple[int, ...]) -> tuple[PreTrained, ...]:
    """What the paper shows for a student that finishes at timestep k, its last one: all of the steps before k re-made by
    the teacher, about the later half of them, about the last quarter. None where there is no such step.

    For k = 5 these are pre-trained-1-6, 4-6 and 5-6, for k = 80 pre-trained-1-81, 41-81 and 61-81, as in its Table 2.
    """
    k = timesteps[-1]
    starts = sorted({0, -(-k // 2), -(-3 * k // 4)})
    return tuple(PreTrained(start + 1, k + 1) for start in starts if start < k)


@torch.inference_mode()
def sample_teacher_involved(
    method: PreTrained,
    teacher: Teacher,
    student: Student,
    noise_BLC: Tensor,
    labels_B: Tensor,
    settings: SamplingSettings,
    choose: Choice,
) -> Sequence:
    """Whole sequences by student and teacher together.

    Args:
        method: which steps are the teacher's.
        teacher: the student's, in eval mode.
        student: in eval mode.
        noise_BLC: float32.
        labels_B: int64.
        settings: the teacher's guidance and filters.
        choose: how the teacher's tokens follow from its log-probabilities: drawn, or from the noise by the flow map.
    """
    prefix_BP = None
    if method.first > 1:
        first_pass = student.finish(noise_BLC, 0, labels_B)
        prefix_BP = first_pass.tokens_BL[:, : student.layout.starts[method.first - 1]]
    tokens_BP = walk(teacher, labels_B, settings, choose, prefix_BP=prefix_BP, num_steps=method.last - 1)
    rows_BPC = student.tokenizer.embed(tokens_BP)
    if method.last - 1 == student.layout.num_steps:
        return Sequence(rows_BPC, tokens_BP)
    states_BLC = torch.cat([rows_BPC, noise_BLC[:, rows_BPC.shape[1] :]], dim=1)
    return student.finish(states_BLC, method.last - 1, labels_B)
