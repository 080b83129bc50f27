"""Sampling with the teacher in between: pre-trained-n-m of Distilled Decoding 1 (arXiv 2412.17153, Table 2).

The paper counts states of the trajectory from 1, all noise. The teacher re-makes its AR steps n - 1 .. m - 2, counted
from 0, and the student finishes from there, at timestep m - 1. Where n > 1, a first pass of the student makes what the
teacher goes on from, snapped to codebook rows. Positions after that keep the image's own noise.

The official VAR sampler lets the teacher look at this prefix without its causal mask. Here a token sees what came before
it, as in the teacher's own walk; the official LlamaGen sampler does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.sampling.method_spec import PreTrained
from distill.student.model import TokenSequence
from distill.student.student import Student
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.trajectory import Choice, walk


@torch.inference_mode()
def sample_teacher_involved(
    method: PreTrained,
    teacher: Teacher,
    student: Student,
    noise_BLC: Tensor,
    labels_B: Tensor,
    settings: SamplingSettings,
    choose: Choice,
) -> TokenSequence:
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
        return TokenSequence(rows_BPC, tokens_BP)
    states_BLC = torch.cat([rows_BPC, noise_BLC[:, rows_BPC.shape[1] :]], dim=1)
    return student.finish(states_BLC, method.last - 1, labels_B)
