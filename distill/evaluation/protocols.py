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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.config import REFERENCE_FREE, EvaluationConfig
from distill.evaluation.feature_extractors import clip_score, inception
from distill.evaluation.feature_extractors.base import ENTRY_POINTS, FeatureExtractor
from distill.evaluation.feature_extractors.digits_classifier import load_digits_classifier
from distill.evaluation.image_metrics import (
    Manifold,
    Moments,
)
from distill.evaluation.reference_images import Batch, Folder, read_statistic, statistic_file
from distill.evaluation.scorer import INCEPTION_AT_ONCE, FeatureAccumulator, Scorer, _on
from generate_pairs.digits.dataset import load_digits_split
from generate_pairs.teachers.base import to_unit_range
from generate_pairs.teachers.registry import plugin
from shards.core.errors import Refused
from shards.storage.files import sha256_file

DIGITS_SHAPE = (1, 8, 8)
"""Channels, height and width of the real digits."""
ADM_SPLIT = 5_000
"""Images in a split of guided-diffusion's inception score."""


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


def open_scorer(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> Scorer | None:
    """The judge of a protocol, its reference read; None where nothing is held against real images.

    Raises:
        Refused: as `check_evaluation`, or a file does not hold what it should.
    """
    check_evaluation(config, image_shape)
    match config.protocol:
        case "samples":
            return None
        case "digits":
            return Scorer.digits(to_unit_range(load_digits_split().train_images), config.device)
        case "adm":
            return _open_adm(config)
        case "dd":
            file = statistic_file(_reference(config))
            extractor = _on(inception.load_inception("torch", config.inception_weights), config.device)
            facts = {"reference_sha256": sha256_file(file), **_weights_facts(config)}
            return Scorer(extractor, read_statistic(file, extractor.dim), None, facts=facts)
        case "folder":
            return _open_folder(config, image_shape)


def _open_adm(config: EvaluationConfig) -> Scorer:
    extractor = _on(inception.load_inception("tensorflow", config.inception_weights), config.device)
    batch = Batch.look(_reference(config), extractor.dim)
    features_NF = _features(extractor, batch.images(INCEPTION_AT_ONCE), config.device)
    return Scorer(
        extractor,
        batch.moments() if batch.has_moments else Moments.of(features_NF),
        Manifold.of(features_NF, by_product=True),
        split_size=ADM_SPLIT,
        facts={"reference_sha256": sha256_file(batch.path), **_weights_facts(config)},
    )


def _open_folder(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> Scorer:
    folder = Folder.look(_reference(config), image_shape)
    extractor = _on(extractor_of(config), config.device)
    features_NF = _features(extractor, folder.images(INCEPTION_AT_ONCE, image_shape), config.device)
    facts: dict[str, Any] = {"reference_sha256": folder.sha256(), "reference_images": len(folder.files)}
    if config.features == "inception":
        facts |= _weights_facts(config)
    return Scorer(extractor, Moments.of(features_NF), Manifold.of(features_NF, by_product=True), facts=facts)


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
    features = FeatureAccumulator(extractor, INCEPTION_AT_ONCE)
    for batch in batches:
        features.add(batch.to(device))
    return features.features_NF()


def _weights_facts(config: EvaluationConfig) -> dict[str, str]:
    path = inception.local_weights(config.inception_weights)
    return {} if path is None else {"inception_sha256": sha256_file(path)}


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
