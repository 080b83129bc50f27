"""The teacher's own images: those of the training pairs, decoded. An evaluation compares every method with them.

A student can be no better than the pairs it is trained on. Its distance to real images mixes the errors of the teacher
with those of distillation; its distance to the teacher's images measures the second alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.student.sampler import max_batch_size
from generate_pairs.teachers.base import Tokenizer, to_unit_range
from shards.dataset.manifest import Manifest, View
from shards.dataset.reader import read_view
from shards.storage.paths import Location

MAX_IMAGES = 50_000
TEACHER_IMAGES_PER_IMAGE = 10
"""Teacher images for each image of a method, at most `MAX_IMAGES` in all: then their sampling error hardly counts."""


@dataclass(frozen=True, eq=False)
class TeacherImages:
    """The images of a view's pairs. The flow map made their tokens, from other noise than any method samples with."""

    root: Location
    view: View
    tokenizer: Tokenizer

    @classmethod
    def of_first_pairs(cls, manifest: Manifest, tokenizer: Tokenizer, num_images: int) -> TeacherImages | None:
        """The teacher's images for methods with `num_images` images each; None if there are fewer than two pairs.

        These are the first of all training pairs, so they are the same for every student of a data set, whatever the
        size of its training set.
        """
        count = min(MAX_IMAGES, TEACHER_IMAGES_PER_IMAGE * num_images, manifest.num_available)
        return cls(manifest.root, manifest.view(count), tokenizer) if count > 1 else None

    def __len__(self) -> int:
        return self.view.size

    @torch.inference_mode()
    def batches(self) -> Iterator[Tensor]:
        """Images (B, channels, height, width) in [0, 1], on the tokenizer's device."""
        device, batch_size = self.tokenizer.codebook_VC.device, max_batch_size(self.tokenizer.image_shape)
        for pairs in read_view(self.root, self.view):
            for tokens_BL in torch.from_numpy(pairs.tokens_BL.astype("int64")).split(batch_size):
                yield to_unit_range(self.tokenizer.decode(self.tokenizer.embed(tokens_BL.to(device))))
