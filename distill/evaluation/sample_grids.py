"""Image grids of an evaluation: one per method, and one that compares the methods on the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from distill.images import captioned_grid, grid_size, image_grid, save_png
from distill.sampling.method_spec import ONESTEP_STAR, TEACHER_FLOW, Method, PreTrained, StudentAlone
from distill.student.student import Student


def save_samples(folder: Path, samples: Mapping[Method, Tensor]) -> None:
    """Save one grid per method, and a comparison whose columns are images of the same noise and label.

    The rows of the comparison are those of figures 9 and 10 of arXiv 2412.17153, fewest steps first, and then onestep*.
    """
    side = next(iter(samples.values())).shape[-1]
    columns, rows = grid_size(side)
    for method, images in samples.items():
        grid = image_grid(images[: columns * rows], columns)
        save_png(grid, folder / f"{method.name.replace('*', '-star')}.png")
    comparison = {method.name: samples[method][:columns] for method in comparison_rows(list(samples))}
    save_png(captioned_grid(comparison), folder / "comparison.png")


def comparison_rows(methods: Sequence[Method]) -> list[Method]:
    """The methods of the comparison, in its order: students, pre-trained-N-M, teacher-flow, onestep*."""
    students = [method for method in methods if isinstance(method, StudentAlone)]
    # Fewest teacher steps first; an evaluation generates these last.
    pre_trained = [method for method in reversed(methods) if isinstance(method, PreTrained)]
    return [
        *students,
        *pre_trained,
        *(method for method in (TEACHER_FLOW, ONESTEP_STAR) if method in methods),
    ]


def shown_captions(student: Student, num_images: int) -> dict[str, list[str]]:
    """The captions of the comparison's columns; empty if labels are classes."""
    if student.texts is None:
        return {}
    columns, _ = grid_size(student.tokenizer.image_shape[-1])
    captions = student.texts.captions
    return {"captions": [captions[column % len(captions)] for column in range(min(columns, num_images))]}
