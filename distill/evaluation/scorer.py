"""Scores of images against a reference, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
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
"""Scores that need features; all but `teacher_distance` also need real images."""
AT_REAL_IMAGES = "frechet_distance_at_real_images"
"""The Frechet distance of a method's first images, as many as the row `real` has, compared as that row is. None if the
method has fewer images."""
CLIP_SCORE = "clip_score"
"""The score that needs captions and a CLIP, in any protocol."""
DIGITS_BATCH_SIZE, INCEPTION_BATCH_SIZE = 500, 50
"""Images whose features are computed at once."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """Computes how far images are from real images.

    Attributes:
        reference: moments of the real images' features.
        real: the real images as balls; None if the protocol has no precision and recall.
        points: the space of the balls, features or pixels.
        split_size: images in a split of the inception score; None for one split.
        rounded: round images to 8 bits a channel first, as files store them.
        batch_size: images whose features are computed at once.
        facts: what the scores depend on, recorded in evaluation.json.
        teacher: moments of the features of the teacher's images; None for no teacher distance.
    """

    extractor: FeatureExtractor
    reference: Moments
    real: Manifold | None
    points: Literal["features", "pixels"] = "features"
    split_size: int | None = None
    rounded: bool = True
    batch_size: int = INCEPTION_BATCH_SIZE
    facts: dict[str, Any] = field(default_factory=dict)
    teacher: Moments | None = None

    @classmethod
    def digits(cls, images: Tensor, device: str = "cpu") -> Scorer:
        """A scorer with the digits classifier and these real images in [0, 1]; the protocol uses the training digits."""
        classifier, images = on_device(load_digits_classifier(), device), images.to(device)
        features_NF = FeatureAccumulator(classifier, DIGITS_BATCH_SIZE).add(images).features_NF()
        return cls(
            classifier,
            Moments.of(features_NF),
            Manifold.of(images.flatten(1)),
            points="pixels",
            rounded=False,
            batch_size=DIGITS_BATCH_SIZE,
        )

    def against_some(self, indices: np.ndarray, *, moments: bool) -> Scorer:
        """A scorer that compares with the real images of these indices only.

        With `moments` it computes the Frechet distance to the moments of those images, otherwise to the same as before.
        The balls of this scorer must be of features.
        """
        if self.real is None or self.points != "features":
            raise ValueError("this scorer keeps no features of its real images")
        some_NF = self.real.centres_NF[torch.from_numpy(indices)]
        return replace(
            self,
            reference=Moments.of(some_NF) if moments else self.reference,
            real=Manifold.of(some_NF, by_product=self.real.by_product),
        )

    def moments(self, batches: Iterable[Tensor]) -> Moments:
        """Moments of the features of images in [0, 1], rounded like all others."""
        features = FeatureAccumulator(self.extractor, self.batch_size, rounded=self.rounded)
        for images_BIHW in batches:
            features.add(images_BIHW)
        return Moments.of(features.features_NF())

    def new_accumulator(self) -> FeatureAccumulator:
        """An empty accumulator of what `scores_of_features` needs."""
        keep_pixels = self.points == "pixels" and self.real is not None
        return FeatureAccumulator(self.extractor, self.batch_size, rounded=self.rounded, keep_pixels=keep_pixels)

    def frechet_distance_of_first(self, features: FeatureAccumulator, count: int) -> float:
        """The Frechet distance of the first `count` images only: it falls as the number of images grows."""
        return frechet_distance(self.reference, Moments.of(features.features_NF()[:count]))

    def scores(self, images: Tensor, classes: Tensor | None) -> dict[str, float | None]:
        """`scores_of_features` of images in [0, 1]."""
        return self.scores_of_features(self.new_accumulator().add(images), classes)

    def scores_of_features(self, features: FeatureAccumulator, classes: Tensor | None) -> dict[str, float | None]:
        """The `SCORES`, None for those that do not apply; `teacher_distance` is the Frechet distance to `teacher`.

        `classes` are the requested classes (N,), None if they are unknown.
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
                correct_N = probabilities_NK.argmax(1) == classes.to(probabilities_NK.device)
                scores["class_accuracy"] = correct_N.double().mean().item()
        if self.real is not None:
            points_NF = torch.cat(features.pixels) if self.points == "pixels" else features_NF
            fake = Manifold.of(points_NF, by_product=self.real.by_product)
            scores |= precision_recall(self.real, fake)._asdict()
        return scores


class FeatureAccumulator:
    """Features of images that are added batch by batch, and their pixels if the scorer needs them.

    The extractor gets `batch_size` images at once, whatever the size of the added batches. `rounded` rounds images to 8
    bits a channel first; `keep_pixels` keeps the images themselves, flattened, in `pixels`.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        batch_size: int,
        *,
        rounded: bool = False,
        keep_pixels: bool = False,
    ) -> None:
        self.extractor = extractor
        self.batch_size = batch_size
        self.rounded = rounded
        self.keep_pixels = keep_pixels
        self._pending: Tensor | None = None
        self._features: list[Tensor] = []
        self.pixels: list[Tensor] = []

    def add(self, images_BIHW: Tensor) -> FeatureAccumulator:
        """Add images in [0, 1]; the result does not depend on the batch sizes."""
        images = images_BIHW.mul(255.0).round().div(255.0) if self.rounded else images_BIHW
        if self.keep_pixels:
            self.pixels.append(images.flatten(1))
        pending = images if self._pending is None else torch.cat([self._pending, images])
        while len(pending) >= self.batch_size:
            self._extract(pending[: self.batch_size])
            pending = pending[self.batch_size :]
        self._pending = pending if len(pending) else None
        return self

    def features_NF(self) -> Tensor:
        """Features (N, F) of all images so far."""
        if self._pending is not None:
            self._extract(self._pending)
            self._pending = None
        return torch.cat(self._features)

    @torch.inference_mode()
    def _extract(self, images_BIHW: Tensor) -> None:
        self._features.append(self.extractor(images_BIHW))


def requested_classes(texts: Texts | None, labels: Tensor) -> Tensor | None:
    """The class of each label: the label itself, or the digit of its caption; None if a caption names no digit."""
    if texts is None:
        return labels
    digits = [digit_of(texts.captions[label]) for label in labels.tolist()]
    return torch.tensor([digit for digit in digits if digit is not None]) if None not in digits else None


def on_device(extractor: Any, device: str) -> Any:
    """Move an extractor that is an `nn.Module`; others stay where they are."""
    return extractor.to(device) if isinstance(extractor, nn.Module) else extractor
