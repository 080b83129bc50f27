"""The rows of real images in an evaluation: as they are (`real`), and encoded and decoded (`reconstruction`).

Even the distance of real images is above zero, because they are few; and the tokenizer adds to it before any model does.
Both rows show the same images, and no image is compared with itself: of the digits, the test set is compared with the
training set, and of other references one half with the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.config import EvaluationConfig
from distill.evaluation.feature_extractors import inception
from distill.evaluation.protocols import reference_path
from distill.evaluation.reference_images import ReferenceBatch, ReferenceFolder, halves, held_out_indices
from distill.evaluation.scorer import Scorer
from distill.student.sampler import max_batch_size
from generate_pairs.digits.dataset import load_digits_split
from generate_pairs.teachers.base import Tokenizer, from_unit_range, to_unit_range

REAL, RECONSTRUCTION = "real", "reconstruction"
REFERENCE_ROWS = (REAL, RECONSTRUCTION)


@dataclass(frozen=True, eq=False)
class RealImages:
    """Real images that are scored as those of a method are.

    Attributes:
        batches: reads them, in [0, 1], a batch at a time.
        labels: their classes (N,), None if they are unknown.
    """

    size: int
    batches: Callable[[], Iterable[Tensor]]
    labels: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> RealImages:
        """Images in [-1, 1] that are in memory, as one batch."""
        return cls(len(images), lambda: [to_unit_range(images)], labels)


@dataclass(frozen=True)
class ReferenceRows:
    """The rows of real images in an evaluation.

    Attributes:
        images: the images of each row by its name; those of `RECONSTRUCTION` before the tokenizer.
        against: what they are compared with, in words.
        missing: why a row is missing, by its name.
        scorer: makes the scorer of these rows from the scorer of the methods.
    """

    images: Mapping[str, RealImages] = field(default_factory=dict)
    against: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    scorer: Callable[[Scorer], Scorer] = lambda scorer: scorer

    def without(self, row: str, reason: str) -> ReferenceRows:
        """The other rows, and why this one is missing."""
        images = {name: images for name, images in self.images.items() if name != row}
        return replace(self, images=images, missing={**self.missing, row: reason})

    @property
    def facts(self) -> dict[str, Any]:
        """What evaluation.json records of them."""
        real = self.images.get(REAL)
        return {
            **({"real_images": real.size, "real_against": self.against} if real else {}),
            **({"missing_rows": dict(self.missing)} if self.missing else {}),
        }


def open_reference_rows(config: EvaluationConfig, tokenizer: Tokenizer) -> ReferenceRows:
    """The rows of real images of a protocol; of files only names, headers and a folder's first image are read.

    Raises:
        Refused: as `check_evaluation`.
    """
    shape = tokenizer.image_shape
    match config.protocol:
        case "samples":
            return ReferenceRows(missing=dict.fromkeys(REFERENCE_ROWS, "the protocol samples has no real images"))
        case "dd":
            reason = "the reference of the protocol dd contains moments, but no images"
            return ReferenceRows(missing=dict.fromkeys(REFERENCE_ROWS, reason))
        case "digits":
            split = load_digits_split()
            real = RealImages.of(split.test_images, split.test_labels)
            rows = ReferenceRows({REAL: real, RECONSTRUCTION: real}, f"the {len(split.train_images):,} training digits")
        case "adm":
            batch = ReferenceBatch.inspect(reference_path(config), inception.DIM)
            read = partial(batch.images, max_batch_size(shape))
            rows = _rows_of_halves(config.num_images, batch.shape[0], read, "the batch", has_moments=batch.has_moments)
            if shape[0] != batch.shape[3]:
                reason = f"the batch's images have {batch.shape[3]} channels, and this teacher's have {shape[0]}"
                return rows.without(RECONSTRUCTION, reason)
        case "folder":
            folder = ReferenceFolder.inspect(reference_path(config), shape)
            read = partial(folder.images, max_batch_size(shape), shape)
            rows = _rows_of_halves(config.num_images, len(folder.files), read, "the folder", has_moments=False)
    return rows if tokenizer.has_encoder else rows.without(RECONSTRUCTION, "the teacher's tokenizer has no encoder")


@torch.inference_mode()
def reconstructed(tokenizer: Tokenizer, images_BIHW: Tensor) -> Tensor:
    """Images in [0, 1], encoded and decoded."""
    return to_unit_range(tokenizer.decode(tokenizer.embed(tokenizer.encode(from_unit_range(images_BIHW)))))


def _rows_of_halves(
    limit: int, num_references: int, read: Callable[[Sequence[int]], Iterable[Tensor]], source: str, *, has_moments: bool
) -> ReferenceRows:
    """Rows of at most `limit` images of one half of a reference, scored against the other half."""
    indices, (_, others) = held_out_indices(num_references, limit), halves(num_references)
    images = RealImages(len(indices), partial(read, indices))
    against = f"the other half of {source}'s images ({len(others):,})"
    if has_moments:
        against = f"{source}'s moments, in precision and recall against {against}"
    scorer = partial(Scorer.against_some, indices=others, moments=not has_moments)
    return ReferenceRows({REAL: images, RECONSTRUCTION: images}, against, scorer=scorer)
