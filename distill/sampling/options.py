"""The options of a sampling job, and their defaults for a student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.config import NoiseWeight
from distill.sampling.method_spec import Method, StudentAlone, parse_method
from distill.student.sampler import check_timesteps, first_timesteps
from distill.student.student import Student
from generate_pairs.config import CaptionsConfig
from generate_pairs.text.caption_lists import read_captions, replace_invalid_characters
from shards.core.errors import Refused

IMAGES_PER_LABEL = 8
DEFAULT_CLASSES = 10


@dataclass(frozen=True)
class SampleOptions:
    """The options of `tokenleap sample`, unchecked; of `steps`, `timesteps` and `method` at most one is given.

    `labels` are (classes or indices of captions, used in turn; number of images of each of them or None for the default,
    unless `num_images` is given), None for the default labels.
    """

    student: Path | str
    out: Path
    steps: int | None = None
    timesteps: tuple[int, ...] | None = None
    method: str | None = None
    teacher: str | None = None
    labels: tuple[tuple[int, ...], int | None] | None = None
    prompts: tuple[str, ...] = ()
    captions: str | None = None
    column: str | None = None
    text_encoder: str | None = None
    num_images: int | None = None
    seed: int = 0
    noise_weight: NoiseWeight | None = None
    batch_size: int | None = None
    device: str = "auto"


def resolve_captions(student: Student, options: SampleOptions) -> tuple[str, ...] | None:
    """The captions that labels index; None for a class-conditional student.

    Raises:
        Refused: the student is class-conditional and captions are given, or it is text-conditional and they are not
            given in exactly one way, or the file is invalid.
    """
    prompts, file, column = options.prompts, options.captions, options.column
    if not student.is_text_conditional:
        if prompts or file is not None or column is not None:
            raise Refused("--prompt and --captions: this student draws images for classes, give --labels")
        return None
    if bool(prompts) == (file is not None):
        raise Refused('this student draws images for captions: give --prompt "TEXT", once or more, or --captions FILE')
    if file is None:
        if column is not None:
            raise Refused(f"--column {column}: this option needs --captions FILE")
        return replace_invalid_characters(prompts)
    settings = {"file": file} if column is None else {"file": file, "column": column}
    return read_captions(CaptionsConfig.model_validate(settings)).captions


def resolve_method(student: Student, options: SampleOptions) -> Method:
    """The method of the options; student-1 by default.

    Raises:
        Refused: the student or its teacher does not have the steps of the method.
    """
    if options.method is not None:
        return parse_method(options.method, student.layout, student.timesteps)
    passes = options.timesteps
    if passes is None:
        passes = first_timesteps(student.timesteps, options.steps or 1)
    check_timesteps(passes, student)
    return StudentAlone(passes)


def resolve_labels(
    student: Student, options: SampleOptions, captions: tuple[str, ...] | None
) -> tuple[tuple[int, ...], int]:
    """The labels to use in turn, and the number of images.

    The default labels are all captions, or the first ten classes (all classes if `num_images` is given).
    """
    if options.labels is not None:
        labels, per_label = options.labels[0], options.labels[1] or IMAGES_PER_LABEL
    elif captions is not None:
        labels, per_label = tuple(range(len(captions))), IMAGES_PER_LABEL if options.prompts else 1
    else:
        count = student.num_classes if options.num_images else min(student.num_classes, DEFAULT_CLASSES)
        labels, per_label = tuple(range(count)), IMAGES_PER_LABEL
    return labels, options.num_images or per_label * len(labels)
