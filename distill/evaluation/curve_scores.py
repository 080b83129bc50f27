"""How good the images of a student are while it is still learning: the same noise and labels at every look."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from distill.config import EvaluationConfig
from distill.evaluation.protocols import open_scorer
from distill.evaluation.scorer import Scorer, requested_classes
from distill.student.sampler import most_at_once, sample_images
from distill.student.student import Student


class StudentScores:
    """Judges a student's images by the protocol of the evaluation, in as many steps as it knows."""

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self._scorer: Scorer | None = None

    @property
    def protocol(self) -> str:
        """What its numbers depend on besides the student, in words."""
        config = self.config
        return f"{config.protocol}, {config.curve_images} images, seed {config.seed}"

    def __call__(self, student: Student) -> Mapping[str, Mapping[str, float]]:
        """Scores by method (`student-1`, `student-2`, ...) and name, those that apply; none without real images.

        With as many images they are those that an evaluation with these settings gives the student's export, up to
        rounding.
        """
        if self.config.protocol == "samples":
            return {}
        # Only here is it known what images the student makes.
        self._scorer = scorer = self._scorer or open_scorer(self.config, student.tokenizer.image_shape)
        if scorer is None:
            return {}
        labels = np.arange(self.config.curve_images) % student.num_classes
        batch_size = most_at_once(student.tokenizer.image_shape)
        scores = {}
        for count in range(1, len(student.timesteps) + 1):
            features = scorer.begin()
            for batch in sample_images(
                student, labels, self.config.seed, student.timesteps[:count], batch_size
            ):
                features.add(batch.images_BIHW.to(self.config.device))
            found = scorer.scores_of(features, requested_classes(student.texts, torch.from_numpy(labels)))
            scores[f"student-{count}"] = {name: value for name, value in found.items() if value is not None}
        return scores
