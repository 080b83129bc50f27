"""The digits classifier, whose features score images of digits; the package contains its weights.

`python -m distill.evaluation.feature_extractors.digits_classifier --out FILE` trains the shipped weights again.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distill.evaluation.feature_extractors.base import extract
from generate_pairs.digits.dataset import NUM_CLASSES, augmented, load_digits_split
from generate_pairs.teachers.base import to_unit_range
from generate_pairs.teachers.meta_device import on_meta_device
from shards.core.errors import Failed
from shards.storage.files import commit_bytes

WEIGHTS = Path(__file__).parent / "weights" / "digits-classifier.safetensors"


class DigitsClassifier(nn.Module):
    """Three 3x3 convolutions and a 32-dimensional standardised penultimate layer, 50,746 parameters.

    The penultimate layer ends in a batch normalisation without weights. Over the digits every feature has about mean 0
    and variance 1, so the features of two trainings give Frechet distances of the same magnitude.
    """

    dim = 32
    knows_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.GELU(),
            nn.Conv2d(32, 48, 3, padding=1, stride=2),
            nn.BatchNorm2d(48),
            nn.GELU(),
            nn.Conv2d(48, 64, 3, padding=1, stride=2),
            nn.BatchNorm2d(64),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64 * 2 * 2, self.dim),
            nn.GELU(),
            nn.BatchNorm1d(self.dim, affine=False),
        )
        self.head = nn.Linear(self.dim, NUM_CLASSES)

    def forward(self, images_BIHW: Tensor) -> Tensor:
        """Digits (B, 1, 8, 8) in [0, 1] to features (B, 32)."""
        return self.body(images_BIHW * 2.0 - 1.0)

    def probabilities(self, features_BF: Tensor) -> Tensor:
        """Features (B, 32) to probabilities of the ten digits (B, 10)."""
        return self.head(features_BF).softmax(dim=1)


@torch.inference_mode()
def accuracy(classifier: DigitsClassifier, images_BIHW: Tensor, labels_B: Tensor) -> float:
    """Share of images in [0, 1] that are classified correctly."""
    predicted_B = classifier.probabilities(extract(classifier, images_BIHW)).argmax(dim=1)
    return (predicted_B == labels_B).double().mean().item()


def load_digits_classifier(path: Path = WEIGHTS) -> DigitsClassifier:
    """The shipped classifier, in evaluation mode and without gradients.

    Raises:
        Failed: the file is missing or does not contain exactly this classifier's tensors.
    """
    with on_meta_device():
        classifier = DigitsClassifier()
    try:
        classifier.load_state_dict(load_file(path), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise Failed(
            f"{path} does not contain the digits classifier ({error}); install the package again, or create the "
            f"file with `python -m distill.evaluation.feature_extractors.digits_classifier --out {path}`"
        ) from error
    return classifier.eval().requires_grad_(False)


def train_digits_classifier(seed: int, epochs: int = 16, copies: int = 12) -> tuple[DigitsClassifier, float]:
    """Train the classifier from scratch on the augmented training digits; takes less than a minute on one thread.

    The seed determines the initial weights, the augmentation, `copies` of each digit, and the order of batches. Returns
    the classifier in evaluation mode, and its accuracy on the test digits.
    """
    split = load_digits_split()
    images, labels = augmented(split.train_images, split.train_labels, copies, seed)
    images = to_unit_range(images)
    batch_size = 128
    batches = len(images) // batch_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = DigitsClassifier().train()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * batches)
        for _ in range(epochs):
            for chosen in torch.randperm(len(images))[: batches * batch_size].split(batch_size):
                logits = classifier.head(classifier(images[chosen]))
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(logits, labels[chosen]).backward()
                optimizer.step()
                schedule.step()
    classifier.eval()
    return classifier, accuracy(classifier, to_unit_range(split.test_images), split.test_labels)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .safetensors file to write.")
@click.option("--seed", default=0, show_default=True, help="Seed of the weights, the augmentation and the order.")
def main(out: Path, seed: int) -> None:
    """Train the digits classifier from scratch and write its weights."""
    torch.set_num_threads(1)
    classifier, test_accuracy = train_digits_classifier(seed)
    # Only one metadata key: safetensors writes several in random order, and equal trainings should give equal files.
    commit_bytes(out, save(classifier.state_dict(), {"test_accuracy": f"{test_accuracy:.4f}"}))
    click.echo(f"{out}: {test_accuracy:.2%} of the 500 test digits correct")


if __name__ == "__main__":
    main()
