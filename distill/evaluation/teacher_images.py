"""The teacher's own images, which a student's are held against besides real ones: those of its pairs, decoded.

A student can be no better than what it learns. How far it is from real images mixes what the teacher lacks with what
distillation lost; how far it is from the teacher's images is the second alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.student.sampler import most_at_once
from generate_pairs.teachers.base import Tokenizer, to_unit_range
from shards.dataset.manifest import Manifest, View
from shards.dataset.reader import pairs_of
from shards.storage.paths import Location

MOST = 50_000
TIMES_AS_MANY = 10
"""So many of the teacher's images for each one of a method, up to `MOST`: their own scatter hardly counts then."""


@dataclass(frozen=True, eq=False)
class TeacherImages:
    """The images of a view's pairs; the flow map made their tokens, of other noise than any that is sampled."""

    root: Location
    view: View
    tokenizer: Tokenizer

    @classmethod
    def beside(cls, manifest: Manifest, tokenizer: Tokenizer, num_images: int) -> TeacherImages | None:
        """Those that so many images of a method are held against; None where fewer than two pairs are there.

        They are the first of all training pairs: the same for every student of a data set, however few it learned from.
        """
        count = min(MOST, TIMES_AS_MANY * num_images, manifest.num_available)
        return cls(manifest.root, manifest.view(count), tokenizer) if count > 1 else None

    def __len__(self) -> int:
        return self.view.size

    @torch.inference_mode()
    def batches(self) -> Iterator[Tensor]:
        """Images (B, channels, height, width) in [0, 1], on the tokenizer's device."""
        device, most = self.tokenizer.codebook_VC.device, most_at_once(self.tokenizer.image_shape)
        for tokens_NL, _ in pairs_of(self.root, self.view):
            for tokens_BL in tokens_NL.split(most):
                yield to_unit_range(self.tokenizer.decode(self.tokenizer.embed(tokens_BL.to(device))))
