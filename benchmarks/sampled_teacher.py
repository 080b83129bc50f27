"""A preset's teacher with the preset's sampling settings: its drawn and its mapped sequences, and their images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.evaluation.scorer import Scorer
from distill.sampling.methods import TEACHER_STREAM
from distill.student.sampler import BATCH_SIZE, sampling_noise
from generate_pairs.digits.dataset import DigitsSplit
from generate_pairs.flow_map.exponential_adams import default_num_steps
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.base import Teacher, to_unit_range
from generate_pairs.teachers.checkpoints import load_teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.trajectory import Choice, Draw, MapNoise, generate_tokens
from pipeline.config.run_config import RunConfig
from shards.format.noise import uniform_numbers


@dataclass(frozen=True)
class SampledTeacher:
    """A teacher and the labels (N,) of its images."""

    teacher: Teacher
    settings: SamplingSettings
    flow_map: FlowMap
    labels_N: Tensor

    @classmethod
    def of(cls, config: RunConfig) -> SampledTeacher:
        """The teacher of a configuration, for the number of images of its evaluation.

        Raises:
            Refused: the teacher does not exist.
        """
        teacher = load_teacher(config.teacher.name, dtype=getattr(torch, config.teacher.dtype)).teacher
        solver_steps = config.pairs.solver_steps or default_num_steps(teacher.codebook_dim)
        labels_N = torch.arange(config.evaluation.num_images) % teacher.num_classes
        flow_map = FlowMap(teacher.codebook_VC.float(), solver_steps)
        return cls(teacher, SamplingSettings.of(config.teacher.model_dump()), flow_map, labels_N)

    def draw(self, seed: int) -> Tensor:
        """Tokens (N, L) drawn from the teacher's distributions."""
        num_tokens = self.teacher.layout.num_tokens

        def choose(first: int, count: int) -> Choice:
            return Draw(torch.from_numpy(uniform_numbers(seed, first, count, num_tokens, TEACHER_STREAM)))

        return self._walk(choose)

    def map(self, seed: int) -> Tensor:
        """Tokens (N, L) that the flow map makes from the noise of an evaluation with this seed."""
        shape = (self.teacher.layout.num_tokens, self.teacher.codebook_dim)

        def choose(first: int, count: int) -> Choice:
            return MapNoise(self.flow_map, sampling_noise(seed, first, count, shape))

        return self._walk(choose)

    @torch.inference_mode()
    def images(self, tokens_NL: Tensor) -> Tensor:
        """Images (N, channels, height, width) in [0, 1] of tokens."""
        tokenizer = self.teacher.tokenizer
        parts = (tokenizer.decode(tokenizer.embed(batch)) for batch in tokens_NL.split(BATCH_SIZE))
        return to_unit_range(torch.cat(list(parts)))

    def _walk(self, choice: Callable[[int, int], Choice]) -> Tensor:
        starts = range(0, len(self.labels_N), BATCH_SIZE)
        parts = [(first, self.labels_N[first : first + BATCH_SIZE]) for first in starts]
        return torch.cat(
            [generate_tokens(self.teacher, labels, self.settings, choice(first, len(labels))) for first, labels in parts]
        )


def digits_scorer(split: DigitsSplit) -> Scorer:
    """The scorer of the evaluation protocol `digits`: its reference is the real training digits."""
    return Scorer.digits(to_unit_range(split.train_images))
