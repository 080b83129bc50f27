"""Protocols: the features and the reference of an evaluation. docs/how-to/evaluation.md describes them in detail.

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
from distill.evaluation.image_metrics import Manifold, Moments
from distill.evaluation.reference_images import (
    ReferenceBatch,
    ReferenceFolder,
    read_statistic,
    statistic_file,
)
from distill.evaluation.scorer import INCEPTION_BATCH_SIZE, FeatureAccumulator, Scorer, on_device
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
    """Refuse an evaluation that cannot work, before any work; of files only names, headers and a
    folder's first image are read.

    Raises:
        Refused: the real images have another shape than the teacher's, or a file, a package or a GPU is missing.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise Refused("evaluation.device is cuda, but torch finds no GPU here: set it to cpu")
    if config.protocol == "digits" and image_shape != DIGITS_SHAPE:
        raise Refused(
            f"evaluation.protocol: digits scores images of {_by(DIGITS_SHAPE)}, and this teacher's are of "
            f"{_by(image_shape)}: set evaluation.protocol to samples"
        )
    if config.protocol in REFERENCE_FREE:
        if config.reference is not None:
            raise Refused(
                f"evaluation.reference is {config.reference}, and the protocol {config.protocol} takes no reference: "
                "set evaluation.protocol to adm, dd or folder"
            )
        return
    reference = reference_path(config)
    if config.protocol == "folder":
        _check_features(config, image_shape)
        ReferenceFolder.inspect(reference, image_shape)
        return
    _check_inception(config)
    if config.protocol == "dd":
        statistic_file(reference)
        return
    size = ReferenceBatch.inspect(reference, inception.DIM).size
    if size != image_shape[1:]:
        raise Refused(
            f"{reference} holds images of {_by(size)}, and this teacher's are of {_by(image_shape[1:])}: give a batch "
            "of that size"
        )


def check_clip(config: EvaluationConfig, has_captions: bool) -> None:
    """Refuse a CLIP that cannot score anything, before any work; its files are inspected, not loaded.

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
    """The scorer of a protocol, with its reference loaded; None for the protocol samples.

    Raises:
        Refused: as `check_evaluation`, or the content of a file is wrong.
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
            file = statistic_file(reference_path(config))
            extractor = on_device(inception.load_inception("torch", config.inception_weights), config.device)
            facts = {"reference_sha256": sha256_file(file), **_weights_facts(config)}
            return Scorer(extractor, read_statistic(file, extractor.dim), None, facts=facts)
        case "folder":
            return _open_folder(config, image_shape)


def _open_adm(config: EvaluationConfig) -> Scorer:
    extractor = on_device(inception.load_inception("tensorflow", config.inception_weights), config.device)
    batch = ReferenceBatch.inspect(reference_path(config), extractor.dim)
    features_NF = _features(extractor, batch.images(INCEPTION_BATCH_SIZE), config.device)
    return Scorer(
        extractor,
        batch.moments() if batch.has_moments else Moments.of(features_NF),
        Manifold.of(features_NF, by_product=True),
        split_size=ADM_SPLIT,
        facts={"reference_sha256": sha256_file(batch.path), **_weights_facts(config)},
    )


def _open_folder(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> Scorer:
    folder = ReferenceFolder.inspect(reference_path(config), image_shape)
    match config.features:
        case "inception":
            extractor: FeatureExtractor = inception.load_inception("tensorflow", config.inception_weights)
        case "digits":
            extractor = load_digits_classifier()
        case name:
            extractor = _registered(name)()
    extractor = on_device(extractor, config.device)
    features_NF = _features(extractor, folder.images(INCEPTION_BATCH_SIZE, image_shape), config.device)
    facts: dict[str, Any] = {"reference_sha256": folder.sha256(), "reference_images": len(folder.files)}
    if config.features == "inception":
        facts |= _weights_facts(config)
    return Scorer(extractor, Moments.of(features_NF), Manifold.of(features_NF, by_product=True), facts=facts)


def _registered(name: str) -> Any:
    return plugin(ENTRY_POINTS, name, "feature extractor", {"inception": None, "digits": None})


def _check_features(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> None:
    if config.features == "inception":
        _check_inception(config)
    elif config.features != "digits":
        _registered(config.features)
    elif image_shape != DIGITS_SHAPE:
        raise Refused(
            f"evaluation.features: the digits classifier takes images of {_by(DIGITS_SHAPE)}, and this teacher's are "
            f"of {_by(image_shape)}"
        )


def _check_inception(config: EvaluationConfig) -> None:
    inception.refuse_missing_package()
    inception.local_weights(config.inception_weights)


def reference_path(config: EvaluationConfig) -> Path:
    """The file or folder of a protocol that takes one.

    Raises:
        Refused: the setting is missing.
    """
    if config.reference is None:
        expected = {
            "adm": "a reference batch of guided-diffusion, such as VIRTUAL_imagenet256_labeled.npz",
            "dd": "the official code's statistic.pth",
            "folder": "a folder of PNG or JPEG images",
        }[config.protocol]
        raise Refused(f"the protocol {config.protocol} needs --set evaluation.reference=PATH: {expected}")
    return Path(config.reference).expanduser()


def _features(extractor: FeatureExtractor, batches: Iterable[Tensor], device: str) -> Tensor:
    features = FeatureAccumulator(extractor, INCEPTION_BATCH_SIZE)
    for batch in batches:
        features.add(batch.to(device))
    return features.features_NF()


def _weights_facts(config: EvaluationConfig) -> dict[str, str]:
    path = inception.local_weights(config.inception_weights)
    return {} if path is None else {"inception_sha256": sha256_file(path)}


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
