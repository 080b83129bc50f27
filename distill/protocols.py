"""Protocols: through which features images are judged, and what they are held against. docs/evaluation.md has the words.

| protocol | features | reference | scores |
|---|---|---|---|
| digits | the shipped classifier | the 1,297 training digits | all; precision and recall in pixels |
| samples | - | - | none |
| adm | Inception, TensorFlow's resize | a batch of guided-diffusion | all but class accuracy |
| dd | Inception, pytorch-fid's resize | the official code's statistics | Frechet distances |
| folder | any | a folder of images | all that the features allow |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill import clip_score, inception
from distill.config import REFERENCE_FREE, EvaluationConfig
from distill.features import ENTRY_POINTS, FeatureExtractor, load_digits_classifier
from distill.frechet import Manifold, Moments, frechet_distance, inception_score, precision_recall
from distill.references import Batch, Folder, read_statistic, statistic_file
from generate_pairs.digits.dataset import load_digits_split
from generate_pairs.teachers.base import Texts, to_unit_range
from generate_pairs.teachers.registry import plugin
from generate_pairs.text.digit_captions import digit_of
from shards.core.errors import Refused
from shards.storage.files import sha256_file

DIGITS_SHAPE = (1, 8, 8)
"""Channels, height and width of the real digits."""
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
ADM_SPLIT = 5_000
"""Images in a split of guided-diffusion's inception score."""
DIGITS_AT_ONCE, INCEPTION_AT_ONCE = 500, 50
"""Images whose features are computed at once."""


@dataclass(frozen=True, eq=False)
class Judge:
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
    def digits(cls, images: Tensor, device: str = "cpu") -> Judge:
        """A judge whose reference are these real images in [0, 1]: those of the protocol are the training digits."""
        classifier, images = _on(load_digits_classifier(), device), images.to(device)
        features_NF = Seen(classifier, DIGITS_AT_ONCE).add(images).features_NF()
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
        seen = Seen(self.extractor, self.batch_size, rounded=self.rounded)
        for images_BIHW in batches:
            seen.add(images_BIHW)
        return Moments.of(seen.features_NF())

    def beside_teacher(self, teacher: Moments) -> Judge:
        """The same judge, who also tells how far images are from the teacher's."""
        return replace(self, teacher=teacher)

    def begin(self) -> Seen:
        """What it will keep of images to come."""
        pixels, balls = self.points == "pixels", self.real is not None
        return Seen(self.extractor, self.batch_size, rounded=self.rounded, keeps_pixels=pixels and balls)

    def scores(self, images: Tensor, classes: Tensor | None) -> dict[str, float | None]:
        """Scores of images in [0, 1] that are all here."""
        return self.scores_of(self.begin().add(images), classes)

    def scores_of(self, seen: Seen, classes: Tensor | None) -> dict[str, float | None]:
        """The `SCORES`, None where one does not apply; `teacher_distance` is the Frechet distance to `teacher`.

        `classes` are those that were asked for, None where nobody knows.
        """
        features_NF = seen.features_NF()
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
            points_NF = seen.pixels_NP() if self.points == "pixels" else features_NF
            fake = Manifold.of(points_NF, by_product=self.real.by_product)
            nearest = precision_recall(self.real, fake)
            scores |= {"precision": nearest.precision, "recall": nearest.recall}
        return scores


class Seen:
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

    def add(self, images_BIHW: Tensor) -> Seen:
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


def classes_asked(texts: Texts | None, labels: Tensor) -> Tensor | None:
    """The class that each label asks for: itself, or the digit of its caption; None where one tells of no digit."""
    if texts is None:
        return labels
    digits = [digit_of(texts.captions[label]) for label in labels.tolist()]
    return torch.tensor([digit for digit in digits if digit is not None]) if None not in digits else None


def check_evaluation(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> None:
    """Refuse what an evaluation could not do, before any work; files are looked at, not read.

    Raises:
        Refused: the real images have another shape than the teacher's, or a file, a package or a GPU is missing.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise Refused("evaluation.device is cuda, but torch finds no GPU here: set it to cpu")
    if config.protocol == "digits" and image_shape != DIGITS_SHAPE:
        raise Refused(
            f"evaluation.protocol: digits judges images of {_by(DIGITS_SHAPE)}, and this teacher's are of "
            f"{_by(image_shape)}: set evaluation.protocol to samples"
        )
    if config.protocol in REFERENCE_FREE:
        if config.reference is not None:
            raise Refused(
                f"evaluation.reference is {config.reference}, and the protocol {config.protocol} holds images against "
                "nothing that could be given: set evaluation.protocol to adm, dd or folder"
            )
        return
    reference = _reference(config)
    if config.protocol == "folder":
        _check_features(config, image_shape)
        Folder.look(reference, image_shape)
        return
    _check_inception(config)
    if config.protocol == "dd":
        statistic_file(reference)
        return
    size = Batch.look(reference, inception.DIM).size
    if size != image_shape[1:]:
        raise Refused(
            f"{reference} holds images of {_by(size)}, and this teacher's are of {_by(image_shape[1:])}: give a batch "
            "of that size"
        )


def check_clip(config: EvaluationConfig, has_captions: bool) -> None:
    """Refuse a CLIP that could score nothing, before any work; its files are looked at, not read.

    Raises:
        Refused: the teacher draws images for classes, or there is no such CLIP.
    """
    if config.clip is None:
        return
    if not has_captions:
        raise Refused(
            f"evaluation.clip is {config.clip}, and this teacher draws images for classes, not for captions: leave it out"
        )
    clip_score.refuse_missing(config.clip)


def open_judge(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> Judge | None:
    """The judge of a protocol, its reference read; None where nothing is held against real images.

    Raises:
        Refused: as `check_evaluation`, or a file does not hold what it should.
    """
    check_evaluation(config, image_shape)
    match config.protocol:
        case "samples":
            return None
        case "digits":
            return Judge.digits(to_unit_range(load_digits_split().train_images), config.device)
        case "adm":
            return _open_adm(config)
        case "dd":
            file = statistic_file(_reference(config))
            extractor = _on(inception.load_inception("torch", config.inception_weights), config.device)
            facts = {"reference_sha256": sha256_file(file), **_weights_facts(config)}
            return Judge(extractor, read_statistic(file, extractor.dim), None, facts=facts)
        case "folder":
            return _open_folder(config, image_shape)


def _open_adm(config: EvaluationConfig) -> Judge:
    extractor = _on(inception.load_inception("tensorflow", config.inception_weights), config.device)
    batch = Batch.look(_reference(config), extractor.dim)
    features_NF = _features(extractor, batch.images(INCEPTION_AT_ONCE), config.device)
    return Judge(
        extractor,
        batch.moments() if batch.has_moments else Moments.of(features_NF),
        Manifold.of(features_NF, by_product=True),
        split_size=ADM_SPLIT,
        facts={"reference_sha256": sha256_file(batch.path), **_weights_facts(config)},
    )


def _open_folder(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> Judge:
    folder = Folder.look(_reference(config), image_shape)
    extractor = _on(extractor_of(config), config.device)
    features_NF = _features(extractor, folder.images(INCEPTION_AT_ONCE, image_shape), config.device)
    facts: dict[str, Any] = {"reference_sha256": folder.sha256(), "reference_images": len(folder.files)}
    if config.features == "inception":
        facts |= _weights_facts(config)
    return Judge(extractor, Moments.of(features_NF), Manifold.of(features_NF, by_product=True), facts=facts)


def extractor_of(config: EvaluationConfig) -> FeatureExtractor:
    """What the protocol folder looks through.

    Raises:
        Refused: nothing is registered under that name, or what it needs is not here.
    """
    if config.features == "inception":
        return inception.load_inception("tensorflow", config.inception_weights)
    if config.features == "digits":
        return load_digits_classifier()
    extractor: FeatureExtractor = _registered(config.features)()
    return extractor


def _registered(name: str) -> Any:
    return plugin(ENTRY_POINTS, name, "feature extractor", {"inception": None, "digits": None})


def _check_features(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> None:
    if config.features == "inception":
        _check_inception(config)
    elif config.features != "digits":
        _registered(config.features)
    elif image_shape != DIGITS_SHAPE:
        raise Refused(
            f"evaluation.features: the digits classifier sees images of {_by(DIGITS_SHAPE)}, and this teacher's are "
            f"of {_by(image_shape)}"
        )


def _check_inception(config: EvaluationConfig) -> None:
    inception.refuse_missing_package()
    inception.local_weights(config.inception_weights)


def _reference(config: EvaluationConfig) -> Path:
    if config.reference is None:
        wanted = {
            "adm": "a reference batch of guided-diffusion, such as VIRTUAL_imagenet256_labeled.npz",
            "dd": "the official code's statistic.pth",
            "folder": "a folder of PNG or JPEG images",
        }[config.protocol]
        raise Refused(f"the protocol {config.protocol} needs --set evaluation.reference=PATH: {wanted}")
    return Path(config.reference).expanduser()


def _features(extractor: FeatureExtractor, batches: Iterable[Tensor], device: str) -> Tensor:
    seen = Seen(extractor, INCEPTION_AT_ONCE)
    for batch in batches:
        seen.add(batch.to(device))
    return seen.features_NF()


def _weights_facts(config: EvaluationConfig) -> dict[str, str]:
    path = inception.local_weights(config.inception_weights)
    return {} if path is None else {"inception_sha256": sha256_file(path)}


def _on(extractor: Any, device: str) -> Any:
    return extractor.to(device) if isinstance(extractor, nn.Module) else extractor


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
