"""The digits classifier: the shipped weights, their accuracy, and reproducible training."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distill.evaluation.feature_extractors.base import extract
from distill.evaluation.feature_extractors.digits_classifier import (
    WEIGHTS,
    DigitsClassifier,
    accuracy,
    load_digits_classifier,
    train_digits_classifier,
)
from distill.evaluation.image_metrics import Moments, frechet_distance, inception_score
from generate_pairs.digits.dataset import load_digits_split
from generate_pairs.teachers.base import to_unit_range
from shards.core.errors import Failed

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def split():
    return load_digits_split()


@pytest.fixture(scope="module")
def classifier():
    return load_digits_classifier()


def test_shipped_weights_are_small_and_record_their_accuracy(classifier, split):
    assert WEIGHTS.stat().st_size < 300_000
    with safe_open(WEIGHTS, framework="pt") as file:
        stated = file.metadata()["test_accuracy"]
    measured = accuracy(classifier, to_unit_range(split.test_images), split.test_labels)
    assert f"{measured:.4f}" == stated
    assert measured >= 0.998


def test_classifier_is_frozen(classifier):
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_loading_draws_no_random_numbers():
    before = torch.get_rng_state()
    load_digits_classifier()
    assert torch.equal(torch.get_rng_state(), before)


def test_features_have_the_stated_size_and_do_not_depend_on_the_batch(classifier, split):
    images = to_unit_range(split.test_images)
    features = extract(classifier, images, batch_size=499)
    assert features.shape == (500, classifier.dim)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[:3], extract(classifier, images[:3]), rtol=1e-5, atol=1e-5)


def test_features_of_the_training_digits_are_standardised(classifier, split):
    features = extract(classifier, to_unit_range(split.train_images))
    assert features.mean(dim=0).abs().max() < 0.25
    assert features.var(dim=0).mean().item() == pytest.approx(1.0, abs=0.05)


def test_probabilities_sum_to_one(classifier, split):
    probabilities = classifier.probabilities(extract(classifier, to_unit_range(split.test_images[:20])))
    assert probabilities.shape == (20, 10)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(20))


def test_unseen_digits_have_nearly_the_highest_inception_score(classifier, split):
    probabilities = classifier.probabilities(extract(classifier, to_unit_range(split.test_images)))
    assert 9.6 < inception_score(probabilities) < 10.0


def test_distance_orders_unseen_digits_before_mosaics_of_digits(classifier, split):
    """The lowest distance, and that of images whose parts are drawn independently."""
    train, test = to_unit_range(split.train_images), to_unit_range(split.test_images)
    generator = torch.Generator().manual_seed(0)
    mosaics = train.clone()
    for label in range(10):
        members = torch.nonzero(split.train_labels == label).squeeze(1)
        for row in range(0, 8, 2):
            for column in range(0, 8, 2):
                shuffled = members[torch.randperm(len(members), generator=generator)]
                window = (slice(None), slice(row, row + 2), slice(column, column + 2))
                mosaics[(members, *window)] = train[(shuffled, *window)]
    real, unseen, mosaic = (Moments.of(extract(classifier, images)) for images in (train, test, mosaics))
    floor = frechet_distance(unseen, real)
    assert floor < 0.15
    assert frechet_distance(mosaic, real) > 10.0 * floor


def test_a_file_of_something_else_is_refused(tmp_path):
    tensors = load_file(WEIGHTS)
    del tensors["head.bias"]
    save_file(tensors, tmp_path / "short.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"no tensors here")
    for name in ("short", "noise", "missing"):
        with pytest.raises(Failed, match=f"{name}.safetensors does not contain the digits classifier"):
            load_digits_classifier(tmp_path / f"{name}.safetensors")


def test_training_learns_and_is_reproducible():
    before = torch.get_rng_state()
    first, first_accuracy = train_digits_classifier(seed=3, epochs=1, copies=0)
    again, again_accuracy = train_digits_classifier(seed=3, epochs=1, copies=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert first_accuracy == again_accuracy > 0.5
    assert isinstance(first, DigitsClassifier)
    assert not first.training
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
