"""Every protocol from its files to its scores, with a small extractor; and refusals before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from distill.config import EvaluationConfig
from distill.evaluation.feature_extractors import inception
from distill.evaluation.feature_extractors.base import extract
from distill.evaluation.feature_extractors.digits_classifier import DigitsClassifier, load_digits_classifier
from distill.evaluation.image_metrics import (
    Manifold,
    Moments,
    frechet_distance,
    inception_score,
    precision_recall,
)
from distill.evaluation.protocols import check_evaluation, open_scorer
from distill.evaluation.scorer import SCORES, FeatureAccumulator, Scorer
from generate_pairs.digits.dataset import load_digits_split
from generate_pairs.teachers.base import to_unit_range
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

DIM = 6
SHAPE = (1, 8, 8)


class Projection(nn.Module):
    """Six random directions of the average channel, and three classes."""

    dim = DIM
    knows_labels = False

    def __init__(self, has_classes: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.directions = torch.randn(64, DIM, generator=generator)
        self.classes = torch.randn(DIM, 3, generator=generator)
        self.has_classes = has_classes

    def forward(self, images_BIHW: Tensor) -> Tensor:
        return images_BIHW.mean(1).flatten(1) @ self.directions

    def probabilities(self, features_BF: Tensor) -> Tensor | None:
        return (features_BF @ self.classes).softmax(1) if self.has_classes else None


@pytest.fixture
def small_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    """The projection replaces the network; in pytorch-fid's convention it computes no classes."""

    def load(convention: str, weights: str | None = None) -> Projection:
        assert weights is None
        return Projection(convention == "tensorflow")

    monkeypatch.setattr(inception, "DIM", DIM)
    monkeypatch.setattr(inception, "load_inception", load)
    monkeypatch.setattr(inception, "refuse_missing_package", lambda: None)
    monkeypatch.setattr(inception, "local_weights", lambda weights: None)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two extractors of another package, one of which cannot be imported."""

    def broken() -> None:
        raise ImportError("no module named lost")

    entries = [
        SimpleNamespace(name="projection", value="theirs:Projection", load=lambda: Projection),
        SimpleNamespace(name="lost", value="lost:Lost", load=broken),
    ]
    monkeypatch.setattr(
        "generate_pairs.teachers.registry.entry_points",
        lambda group: entries if group == "tokenleap.features" else [],
    )


@pytest.fixture(scope="module")
def real() -> Tensor:
    """130 digits, rounded as files store them."""
    return to_unit_range(load_digits_split().train_images[:130]).mul(255).round() / 255


@pytest.fixture(scope="module")
def fake() -> Tensor:
    return to_unit_range(load_digits_split().test_images[:110]).add(0.01).clamp(0, 1)


REFERENCE = Moments(np.full(DIM, 0.5), 2.0 * np.eye(DIM))


def write_batch(path: Path, real: Tensor, **moments: np.ndarray) -> Path:
    pixels = (real * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    np.savez(path, arr_0=pixels.numpy(), **moments)
    return path


@pytest.fixture
def batch_file(real: Tensor, tmp_path: Path) -> Path:
    return write_batch(tmp_path / "batch.npz", real, mu=REFERENCE.mean_F, sigma=REFERENCE.covariance_FF)


@pytest.fixture
def image_folder(real: Tensor, tmp_path: Path) -> Path:
    folder = tmp_path / "real"
    folder.mkdir()
    for index, image in enumerate((real * 255).round().to(torch.uint8)):
        Image.fromarray(image[0].numpy()).save(folder / f"{index:04d}.png")
    return folder


def scorer_of(config: EvaluationConfig) -> Scorer:
    scorer = open_scorer(config, SHAPE)
    assert scorer is not None
    return scorer


def scores_of(config: EvaluationConfig, images: Tensor) -> dict[str, Any]:
    """Scores of images that are added 37 at a time."""
    scorer = scorer_of(config)
    features = scorer.new_accumulator()
    for batch in images.split(37):
        features.add(batch)
    return scorer.scores_of_features(features, torch.zeros(len(images), dtype=torch.int64))


def rounded(images: Tensor) -> Tensor:
    return images.mul(255).round() / 255


@pytest.mark.usefixtures("small_inception")
def test_adm_reads_moments_from_the_file_and_neighbours_from_its_images(
    batch_file: Path, real: Tensor, fake: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.evaluation.protocols.ADM_SPLIT", 40)
    found = scores_of(EvaluationConfig(protocol="adm", reference=str(batch_file)), fake)
    projection = Projection()
    ours, theirs = projection(rounded(fake)), projection(real)
    assert found["frechet_distance"] == pytest.approx(frechet_distance(REFERENCE, Moments.of(ours)), rel=1e-6)
    nearest = precision_recall(Manifold.of(theirs), Manifold.of(ours))
    assert (found["precision"], found["recall"]) == nearest
    parts = [inception_score(projection.probabilities(part)) for part in ours.split(40)]
    assert found["inception_score"] == pytest.approx(sum(parts) / 3, rel=1e-6)
    assert found["class_accuracy"] is None


@pytest.mark.usefixtures("small_inception")
def test_adm_computes_missing_moments_from_the_images(real: Tensor, fake: Tensor, tmp_path: Path) -> None:
    bare = write_batch(tmp_path / "bare.npz", real)
    found = scores_of(EvaluationConfig(protocol="adm", reference=str(bare)), fake)
    expected = frechet_distance(Moments.of(Projection()(real)), Moments.of(Projection()(rounded(fake))))
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("small_inception")
def test_dd_computes_only_a_distance(fake: Tensor, tmp_path: Path) -> None:
    torch.save({"m": REFERENCE.mean_F, "s": REFERENCE.covariance_FF}, tmp_path / "statistic.pth")
    config = EvaluationConfig(protocol="dd", reference=str(tmp_path))
    found = scores_of(config, fake)
    expected = frechet_distance(REFERENCE, Moments.of(Projection()(rounded(fake))))
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-6)
    assert {found[score] for score in SCORES if score != "frechet_distance"} == {None}
    scorer = scorer_of(config)
    assert len(scorer.facts["reference_sha256"]) == 64


@pytest.mark.usefixtures("installed")
def test_a_folder_can_use_the_extractor_of_another_package(image_folder: Path, real: Tensor, fake: Tensor) -> None:
    config = EvaluationConfig(protocol="folder", reference=str(image_folder), features="projection")
    found = scores_of(config, fake)
    projection = Projection()
    ours, theirs = projection(rounded(fake)), projection(real)
    expected = frechet_distance(Moments.of(theirs), Moments.of(ours))
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    assert found["inception_score"] == pytest.approx(inception_score(projection.probabilities(ours)))
    nearest = precision_recall(Manifold.of(theirs), Manifold.of(ours))
    assert (found["precision"], found["recall"]) == nearest
    assert found["class_accuracy"] is None
    scorer = scorer_of(config)
    assert scorer.facts["reference_images"] == 130


def test_a_folder_of_digits_can_use_the_digits_classifier(image_folder: Path, fake: Tensor) -> None:
    config = EvaluationConfig(protocol="folder", reference=str(image_folder), features="digits")
    scorer = scorer_of(config)
    found = scorer.scores(fake, load_digits_split().test_labels[:110])
    assert found["frechet_distance"] < 2
    assert found["class_accuracy"] > 0.95


def test_a_teacher_reference_adds_the_distance_to_the_teachers_images(
    image_folder: Path, real: Tensor, fake: Tensor
) -> None:
    config = EvaluationConfig(protocol="folder", reference=str(image_folder), features="digits")
    alone = scorer_of(config)
    assert alone.scores(fake, None)["teacher_distance"] is None
    # In batches of any size, and rounded as files store them, like all scored images.
    teacher_images = torch.cat([real[:60], fake[:40]]) - 0.001
    scorer = replace(alone, teacher=alone.moments(teacher_images.split(33)))
    found = scorer.scores(fake, None)
    classifier = load_digits_classifier()
    theirs, ours = (Moments.of(extract(classifier, rounded(images))) for images in (teacher_images, fake))
    assert found["teacher_distance"] == pytest.approx(frechet_distance(theirs, ours), rel=1e-6)
    assert {**found, "teacher_distance": None} == alone.scores(fake, None)
    assert scorer.scores(teacher_images, None)["teacher_distance"] == pytest.approx(0, abs=1e-9)


def test_scores_do_not_depend_on_the_batch_size(fake: Tensor) -> None:
    scorer = Scorer.digits(to_unit_range(load_digits_split().train_images))
    labels = load_digits_split().test_labels[:110]
    whole = scorer.scores(fake, labels)
    for size in (1, 50, 109):
        features = scorer.new_accumulator()
        for batch in fake.split(size):
            features.add(batch)
        assert scorer.scores_of_features(features, labels) == whole


def test_the_extractors_batch_size_does_not_depend_on_the_added_batches() -> None:
    extracted: list[int] = []

    class Counting(Projection):
        def forward(self, images_BIHW: Tensor) -> Tensor:
            extracted.append(len(images_BIHW))
            return super().forward(images_BIHW)

    features = FeatureAccumulator(Counting(), 4)
    for count in (3, 3, 9, 1):
        features.add(torch.rand(count, 1, 8, 8))
    assert features.features_NF().shape == (16, DIM)
    assert extracted == [4, 4, 4, 4]
    features.add(torch.rand(2, 1, 8, 8))
    assert features.features_NF().shape == (18, DIM)
    assert extracted == [4, 4, 4, 4, 2]


def test_pixels_are_kept_only_if_the_scorer_needs_them(fake: Tensor) -> None:
    features = FeatureAccumulator(Projection(), 50).add(fake)
    assert features.pixels == []
    assert features._pending is not None
    assert len(features._pending) == 10


def test_only_images_of_the_real_digits_shape_are_scored_as_digits() -> None:
    check_evaluation(EvaluationConfig(protocol="digits"), SHAPE)
    check_evaluation(EvaluationConfig(protocol="samples"), (3, 256, 256))
    with pytest.raises(Refused, match=r"this teacher's are of 3 x 256 x 256: set evaluation\.protocol to samples"):
        check_evaluation(EvaluationConfig(protocol="digits"), (3, 256, 256))
    assert open_scorer(EvaluationConfig(protocol="samples"), (3, 256, 256)) is None


@pytest.mark.usefixtures("small_inception", "installed")
@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"reference": "real"}, SHAPE, r"evaluation\.reference is real, and the protocol digits takes no reference"),
        ({"protocol": "adm"}, SHAPE, r"adm needs --set evaluation\.reference=PATH: a reference batch"),
        ({"protocol": "dd"}, SHAPE, r"dd needs --set evaluation\.reference=PATH: the official code's statist"),
        ({"protocol": "folder"}, SHAPE, r"folder needs --set evaluation\.reference=PATH: a folder of PNG"),
        ({"protocol": "adm", "reference": "nowhere.npz"}, SHAPE, r"there is no file nowhere\.npz"),
        ({"protocol": "dd", "reference": "nowhere.pth"}, SHAPE, r"there is no file nowhere\.pth"),
        ({"protocol": "folder", "reference": "nowhere"}, SHAPE, "nowhere is no folder of images"),
        (
            {"protocol": "folder", "reference": "nowhere", "features": "colours"},
            SHAPE,
            "no feature extractor is called 'colours': there are inception, digits, lost, projection. Another "
            "package can add one by an entry point of the group tokenleap.features",
        ),
        (
            {"protocol": "folder", "reference": "nowhere", "features": "lost"},
            SHAPE,
            "feature extractor 'lost' comes from lost:Lost, which cannot be imported: no module named lost",
        ),
        (
            {"protocol": "folder", "reference": "nowhere", "features": "digits"},
            (3, 16, 16),
            "the digits classifier takes images of 1 x 8 x 8, and this teacher's are of 3 x 16 x 16",
        ),
    ],
)
def test_missing_files_and_settings_are_refused_before_any_work(
    settings: dict[str, Any], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        check_evaluation(EvaluationConfig(**settings), shape)


@pytest.mark.usefixtures("small_inception")
def test_a_batch_of_another_size_is_refused(batch_file: Path) -> None:
    config = EvaluationConfig(protocol="adm", reference=str(batch_file))
    check_evaluation(config, SHAPE)
    with pytest.raises(Refused, match="holds images of 8 x 8, and this teacher's are of 16 x 16: give a batch"):
        check_evaluation(config, (3, 16, 16))


def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match=r"evaluation\.device is cuda, but torch finds no GPU"):
        check_evaluation(EvaluationConfig(device="cuda"), SHAPE)


def test_default_numbers_of_images_depend_on_the_protocol() -> None:
    images = {"digits": 2_000, "samples": 64, "adm": 50_000, "dd": 50_000, "folder": 10_000}
    for protocol, count in images.items():
        config = EvaluationConfig(protocol=protocol)
        assert (config.num_images, config.curve_images) == (count, min(count, 5_000))
    assert EvaluationConfig() == EvaluationConfig(protocol="digits")
    assert EvaluationConfig(num_images=300).curve_images == 300
    assert EvaluationConfig(num_images=30_000).curve_images == 5_000
    assert EvaluationConfig(num_images=300, curve_images=200).curve_images == 200


@pytest.mark.parametrize("protocol", ["digits", "adm", "dd", "folder"])
def test_too_few_images_for_a_score_are_refused(protocol: str) -> None:
    with pytest.raises(ValidationError) as refused:
        EvaluationConfig(protocol=protocol, num_images=99)
    assert [error["loc"] for error in refused.value.errors()] == [("num_images",)]
    with pytest.raises(ValidationError, match=f"curve_images is 99, and the scores of the protocol {protocol}"):
        EvaluationConfig(protocol=protocol, curve_images=99)


def test_the_settings_that_a_result_depends_on() -> None:
    own = {"protocol": "digits", "num_images": 2_000, "seed": 0, "repeats": 1}
    assert EvaluationConfig(reference="unused").result_settings == own
    given = {"protocol": "folder", "reference": "real", "features": "mine", "seed": 4, "repeats": 3}
    folder = EvaluationConfig(**given)
    assert folder.result_settings == {**given, "num_images": 10_000}
    assert list(folder.seeds) == [4, 5, 6]


def test_only_the_digits_classifier_knows_the_labels() -> None:
    assert DigitsClassifier.knows_labels
    assert not inception.Inception.knows_labels
