"""Scores of a student's images during training: the same noise and labels at every evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from distill.config import EvaluationConfig
from distill.evaluation.protocols import open_scorer
from distill.evaluation.scorer import Scorer, requested_classes
from distill.sampling.method_spec import StudentAlone
from distill.student.sampler import max_batch_size, sample_images
from distill.student.student import Student


class StudentScores:
    """Scores a student's images by the protocol of the evaluation, for each number of its steps."""

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self._scorer: Scorer | None = None

    @property
    def protocol(self) -> str:
        """Describes what the scores depend on, except the student."""
        config = self.config
        return f"{config.protocol}, {config.curve_images} images, seed {config.seed}"

    def __call__(self, student: Student) -> Mapping[str, Mapping[str, float]]:
        """Scores by method (`student-1`, `student-2`, ...) and name, without those that do not apply.

        For the same number of images the scores equal those of an evaluation of the student's export, up to rounding.
        """
        if self.config.protocol == "samples":
            return {}
        # Opened here, because the shape of the images is unknown before.
        self._scorer = scorer = self._scorer or open_scorer(self.config, student.tokenizer.image_shape)
        if scorer is None:
            return {}
        labels = np.arange(self.config.curve_images) % student.num_classes
        classes = requested_classes(student.texts, torch.from_numpy(labels))
        batch_size = max_batch_size(student.tokenizer.image_shape)
        scores = {}
        for count in range(1, len(student.timesteps) + 1):
            method = StudentAlone(student.timesteps[:count])
            features = scorer.new_accumulator()
            for batch in sample_images(student, labels, self.config.seed, method.timesteps, batch_size):
                features.add(batch.images_BIHW.to(self.config.device))
            numbers = scorer.scores_of_features(features, classes)
            scores[method.name] = {name: value for name, value in numbers.items() if value is not None}
        return scores
