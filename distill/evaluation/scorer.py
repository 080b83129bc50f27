"""Scores of images against a reference, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.evaluation.feature_extractors.base import FeatureExtractor
from distill.evaluation.feature_extractors.digits_classifier import load_digits_classifier
from distill.evaluation.image_metrics import (
    Manifold,
    Moments,
    frechet_distance,
    inception_score,
    precision_recall,
)
from generate_pairs.teachers.base import Texts
from generate_pairs.text.digit_captions import digit_of

SCORES = (
    "frechet_distance",
    "teacher_distance",
    "inception_score",
    "precision",
    "recall",
    "class_accuracy",
)
"""What needs features; all but `teacher_distance` need real images, too."""
CLIP_SCORE = "clip_score"
"""What needs captions, and a CLIP, in whatever protocol."""
DIGITS_AT_ONCE, INCEPTION_AT_ONCE = 500, 50
"""Images whose features are computed at once."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """The real images, and how far others are from them.

    Attributes:
        extractor: what it looks through.
        reference: moments of the real images' features.
        real: the real images as balls; None where precision and recall do not apply.
        points: where the balls lie, in the features or in the pixels themselves.
        split_size: images in a split of the inception score; None for all at once.
        rounded: look at images rounded to 8 bits a channel, as files hold them.
        batch_size: images whose features are computed at once.
        facts: what else its numbers depend on, for the record.
        teacher: moments of the features of the teacher's own images; None where nobody holds images against them.
    """

    extractor: FeatureExtractor
    reference: Moments
    real: Manifold | None
    points: Literal["features", "pixels"] = "features"
    split_size: int | None = None
    rounded: bool = True
    batch_size: int = INCEPTION_AT_ONCE
    facts: dict[str, Any] = field(default_factory=dict)
    teacher: Moments | None = None

    @classmethod
    def digits(cls, images: Tensor, device: str = "cpu") -> Scorer:
        """A judge whose reference are these real images in [0, 1]: those of the protocol are the training digits."""
        classifier, images = _on(load_digits_classifier(), device), images.to(device)
        features_NF = FeatureAccumulator(classifier, DIGITS_AT_ONCE).add(images).features_NF()
        return cls(
            classifier,
            Moments.of(features_NF),
            Manifold.of(images.flatten(1)),
            points="pixels",
            rounded=False,
            batch_size=DIGITS_AT_ONCE,
        )

    def moments(self, batches: Iterable[Tensor]) -> Moments:
        """Moments of the features of images in [0, 1], looked at as all others are."""
        features = FeatureAccumulator(self.extractor, self.batch_size, rounded=self.rounded)
        for images_BIHW in batches:
            features.add(images_BIHW)
        return Moments.of(features.features_NF())

    def with_teacher_reference(self, teacher: Moments) -> Scorer:
        """The same judge, who also tells how far images are from the teacher's."""
        return replace(self, teacher=teacher)

    def begin(self) -> FeatureAccumulator:
        """What it will keep of images to come."""
        pixels, balls = self.points == "pixels", self.real is not None
        return FeatureAccumulator(
            self.extractor, self.batch_size, rounded=self.rounded, keeps_pixels=pixels and balls
        )

    def scores(self, images: Tensor, classes: Tensor | None) -> dict[str, float | None]:
        """Scores of images in [0, 1] that are all here."""
        return self.scores_of(self.begin().add(images), classes)

    def scores_of(self, features: FeatureAccumulator, classes: Tensor | None) -> dict[str, float | None]:
        """The `SCORES`, None where one does not apply; `teacher_distance` is the Frechet distance to `teacher`.

        `classes` are those that were asked for, None where nobody knows.
        """
        features_NF = features.features_NF()
        scores: dict[str, float | None] = dict.fromkeys(SCORES)
        moments = Moments.of(features_NF)
        scores["frechet_distance"] = frechet_distance(self.reference, moments)
        if self.teacher is not None:
            scores["teacher_distance"] = frechet_distance(self.teacher, moments)
        with torch.inference_mode():
            probabilities_NK = self.extractor.probabilities(features_NF)
        if probabilities_NK is not None:
            scores["inception_score"] = inception_score(probabilities_NK, self.split_size)
            if self.extractor.knows_labels and classes is not None:
                right_N = probabilities_NK.argmax(1) == classes.to(probabilities_NK.device)
                scores["class_accuracy"] = right_N.double().mean().item()
        if self.real is not None:
            points_NF = features.pixels_NP() if self.points == "pixels" else features_NF
            fake = Manifold.of(points_NF, by_product=self.real.by_product)
            nearest = precision_recall(self.real, fake)
            scores |= {"precision": nearest.precision, "recall": nearest.recall}
        return scores


class FeatureAccumulator:
    """What is kept of images that were looked at, batch by batch: features, and pixels where these are judged too.

    Args:
        extractor: what they are looked at through.
        batch_size: images whose features are computed at once, however they come in.
        rounded: round to 8 bits a channel first.
        keeps_pixels: keep the images themselves, flat.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        batch_size: int,
        *,
        rounded: bool = False,
        keeps_pixels: bool = False,
    ) -> None:
        self.extractor = extractor
        self.batch_size = batch_size
        self.rounded = rounded
        self.keeps_pixels = keeps_pixels
        self._waiting: Tensor | None = None
        self._features: list[Tensor] = []
        self._pixels: list[Tensor] = []

    def add(self, images_BIHW: Tensor) -> FeatureAccumulator:
        """Look at images in [0, 1]; the same however many come at a time."""
        images = images_BIHW.mul(255.0).round().div(255.0) if self.rounded else images_BIHW
        if self.keeps_pixels:
            self._pixels.append(images.flatten(1))
        waiting = images if self._waiting is None else torch.cat([self._waiting, images])
        while len(waiting) >= self.batch_size:
            self._look(waiting[: self.batch_size])
            waiting = waiting[self.batch_size :]
        self._waiting = waiting if len(waiting) else None
        return self

    def features_NF(self) -> Tensor:
        """Features (N, F) of all images so far."""
        if self._waiting is not None:
            self._look(self._waiting)
            self._waiting = None
        return torch.cat(self._features)

    def pixels_NP(self) -> Tensor:
        """All images so far, flat, (N, channels * height * width)."""
        return torch.cat(self._pixels)

    @torch.inference_mode()
    def _look(self, images_BIHW: Tensor) -> None:
        self._features.append(self.extractor(images_BIHW))


def requested_classes(texts: Texts | None, labels: Tensor) -> Tensor | None:
    """The class that each label asks for: itself, or the digit of its caption; None where one tells of no digit."""
    if texts is None:
        return labels
    digits = [digit_of(texts.captions[label]) for label in labels.tolist()]
    return torch.tensor([digit for digit in digits if digit is not None]) if None not in digits else None


def _on(extractor: Any, device: str) -> Any:
    return extractor.to(device) if isinstance(extractor, nn.Module) else extractor
