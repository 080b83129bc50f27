"""The digits: a fixed split and slight augmentation."""

from __future__ import annotations

import hashlib

import pytest
import torch

from generate_pairs.digits.dataset import augmented, held_out, load_digits_split

pytestmark = pytest.mark.quick

SPLIT_DIGESTS = ["f0d60885f7757428", "65ed08e1421d2feb", "6bc962ae42b96a36", "4ee392f8b0eeb0a8"]


@pytest.fixture(scope="module")
def split():
    return load_digits_split()


def test_split_sizes_and_ranges(split):
    assert split.train_images.shape == (1297, 1, 8, 8)
    assert split.test_images.shape == (500, 1, 8, 8)
    assert split.train_images.dtype == torch.float32
    assert split.train_labels.dtype == torch.int64
    for images in (split.train_images, split.test_images):
        assert images.min() == -1.0
        assert images.max() == 1.0
    assert split.test_labels.bincount().tolist() == [50] * 10
    assert split.train_labels.bincount().tolist() == [128, 132, 127, 133, 131, 132, 131, 129, 124, 130]


def test_split_is_the_same_on_every_machine(split):
    tensors = (split.train_images, split.train_labels, split.test_images, split.test_labels)
    digests = [hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16] for tensor in tensors]
    assert digests == SPLIT_DIGESTS


def test_no_test_image_is_a_training_image(split):
    train = {image.numpy().tobytes() for image in split.train_images}
    assert not any(image.numpy().tobytes() in train for image in split.test_images)


def test_held_out_selects_evenly_spaced_examples_of_each_class():
    labels = torch.tensor([0, 0, 1, 0, 1, 0, 0, 0])
    assert held_out(labels, 2).tolist() == [False, False, True, True, True, False, False, True]


def test_augmented_keeps_the_originals_first(split):
    unchanged = augmented(split.test_images, split.test_labels, copies=0, seed=0)
    assert all(map(torch.equal, unchanged, (split.test_images, split.test_labels)))
    images, labels = augmented(split.train_images[:7], split.train_labels[:7], copies=3, seed=5)
    assert images.shape == (28, 1, 8, 8)
    assert torch.equal(images[:7], split.train_images[:7])
    assert torch.equal(labels, split.train_labels[:7].repeat(4))
    assert not torch.equal(images[7:14], images[14:21])


def test_augmented_follows_its_seed(split):
    first, again, other = (augmented(split.train_images[:50], split.train_labels[:50], 2, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first[50:], other[50:])


def test_augmentation_is_slight(split):
    """The mean brightness is kept, values stay in [-1, 1], and a blank image stays blank."""
    images, _ = augmented(split.train_images, split.train_labels, copies=4, seed=0)
    moved = images[len(split.train_images) :]
    assert moved.min() >= -1.0
    assert moved.max() <= 1.0
    ink, original_ink = (moved + 1.0).mean().item(), (split.train_images + 1.0).mean().item()
    assert ink == pytest.approx(original_ink, rel=0.02)
    nearness = (moved - split.train_images.repeat(4, 1, 1, 1)).square().mean()
    assert 0.03 < nearness < 0.06
    blank = torch.full((3, 1, 8, 8), -1.0)
    assert torch.equal(augmented(blank, torch.zeros(3, dtype=torch.int64), 2, 0)[0], blank.repeat(3, 1, 1, 1))
