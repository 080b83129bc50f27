"""How good the images of a student are while it is still learning: the same noise and labels at every look."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from distill.config import EvaluationConfig
from distill.evaluation import Judge
from distill.sampler import most_at_once, sample_images
from distill.student import Student
from generate_pairs.teachers.base import to_unit_range
from generate_pairs.teachers.embedded.digits import load_digits_split


class StudentScores:
    """Judges a student's images by the protocol of the evaluation, in as many steps as it knows."""

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self._judge: Judge | None = None
        if config.protocol == "digits":
            self._judge = Judge.digits(to_unit_range(load_digits_split().train_images))

    @property
    def protocol(self) -> str:
        """What its numbers depend on besides the student, in words."""
        config = self.config
        return f"{config.protocol}, {config.num_images} images, seed {config.seed}"

    def __call__(self, student: Student) -> Mapping[str, Mapping[str, float]]:
        """Scores by method (`student-1`, `student-2`, ...) and name; none where the protocol has no real images.

        They are those that an evaluation with these settings gives the student's export, up to rounding.
        """
        if self._judge is None:
            return {}
        labels = np.arange(self.config.num_images) % student.num_classes
        batch_size = most_at_once(student.tokenizer.image_shape)
        scores = {}
        for count in range(1, len(student.timesteps) + 1):
            timesteps = student.timesteps[:count]
            batches = sample_images(student, labels, self.config.seed, timesteps, batch_size)
            images = torch.cat([batch.images_BIHW for batch in batches])
            scores[f"student-{count}"] = self._judge.scores(images, torch.from_numpy(labels))
        return scores
