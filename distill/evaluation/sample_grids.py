"""How the methods of an evaluation look: a grid of each, and all of them beside each other from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from distill.images import captioned_grid, grid_size, image_grid, save_png
from distill.student.student import Student


def save_samples(folder: Path, samples: Mapping[str, Tensor]) -> None:
    """One grid a method, and a comparison whose columns are images from the same noise and label.

    Its rows are those of figures 9 and 10 of arXiv 2412.17153, fewest steps first, and then onestep*.
    """
    side = next(iter(samples.values())).shape[-1]
    columns, rows = grid_size(side)
    for method, images in samples.items():
        grid = image_grid(images[: columns * rows], columns)
        save_png(grid, folder / f"{method.replace('*', '-star')}.png")
    save_png(
        captioned_grid({method: samples[method][:columns] for method in compared(list(samples))}),
        folder / "comparison.png",
    )


def compared(methods: Sequence[str]) -> list[str]:
    """The methods of the comparison, in its order: students, the teacher in between, the teacher, onestep*."""
    students = [method for method in methods if method.startswith("student-")]
    # Those with the fewest steps of the teacher's come first, and these are made last.
    involved = [method for method in reversed(methods) if method.startswith("pre-trained-")]
    return [*students, *involved, *(method for method in ("teacher-flow", "onestep*") if method in methods)]


def shown_captions(student: Student, num_images: int) -> dict[str, list[str]]:
    """The captions that the columns of the comparison were drawn for; nothing where labels are classes."""
    if student.texts is None:
        return {}
    columns, _ = grid_size(student.tokenizer.image_shape[-1])
    captions = student.texts.captions
    return {"captions": [captions[column % len(captions)] for column in range(min(columns, num_images))]}
