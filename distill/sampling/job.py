"""One sampling job: what is asked for, by which method, and making what is missing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.config import NoiseWeight
from distill.lineage import load_teacher_of_student
from distill.sampling.image_store import ImageStore
from distill.sampling.method_spec import Method, join_numbers
from distill.sampling.methods import Methods
from distill.student.export import ExportConfig
from distill.student.sampler import student_images
from distill.student.student import Student
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.checkpoints import LoadedTeacher
from generate_pairs.teachers.filtering import SamplingSettings
from shards.core.callbacks import Report, ShouldStop
from shards.core.errors import Refused, Stopped
from shards.dataset.captions import captions_sha256
from shards.format.spec import without_names
from shards.storage.files import sha256_bytes

LISTED_LABELS = 20
"""More labels than these are told by their number and sha256."""

Make = Callable[[int, Tensor], Tensor]
"""(number of the first image, labels (B,)) -> images (B, 1 or 3, height, width) in [0, 1]."""


def sample_request(
    config: ExportConfig,
    method: Method,
    labels: Sequence[int],
    seed: int,
    num_images: int,
    noise_weight: NoiseWeight,
    captions: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All that determines the images of a job but for rounding, as JSON; neither batch size nor device do.

    `captions` are what labels are numbers of, None for classes.
    """
    lineage = config.lineage if method.timesteps is None else None
    told = {} if captions is None else {"captions_sha256": captions_sha256(captions)}
    return told | {
        "student_sha256": config.student_sha256,
        "tokenizer_sha256": config.tokenizer_sha256,
        "method": method.name,
        "timesteps": None if method.timesteps is None else list(method.timesteps),
        "noise_weight": None if method.name.startswith("teacher") else _as_json(noise_weight),
        "lineage": None if lineage is None else without_names(lineage),
        "seed": seed,
        "labels": describe_labels(labels),
        "num_images": num_images,
    }


def _as_json(weight: NoiseWeight) -> float | list[float]:
    """A weight of the noise as it comes back from JSON."""
    return list(weight) if isinstance(weight, tuple) else weight


def describe_labels(labels: Sequence[int]) -> str:
    """Labels that are taken in turn: `0..9`, `3,7`, or their number and sha256."""
    if len(labels) > 2 and tuple(labels) == tuple(range(len(labels))):
        return f"0..{len(labels) - 1}"
    if len(labels) <= LISTED_LABELS:
        return join_numbers(labels)
    return f"{len(labels):,} labels, sha256 {sha256_bytes(np.array(labels, dtype='<i8').tobytes())}"


def open_method(student: Student, method: Method, seed: int, teacher: LoadedTeacher | None) -> Make:
    """What makes images by a method, on the student's device.

    Args:
        student: in eval mode.
        method: which one.
        seed: of noise and draws.
        teacher: the student's, from `teacher_for`.
    """
    if teacher is None or student.lineage is None:
        timesteps = method.timesteps or ()
        return lambda first, labels_B: student_images(student, first, labels_B, seed, timesteps).images_BIHW
    model = teacher.teacher if student.texts is None else teacher.teacher.with_texts(student.texts)
    methods = Methods(
        model,
        SamplingSettings.of(student.lineage["teacher"]),
        FlowMap(model.codebook_VC.float(), student.lineage["flow_map"]["solver_steps"]),
        student,
        # No method here draws from the frequencies of pairs.
        torch.empty(0),
        seed,
    )
    return lambda first, labels_B: methods.make(method.name, first, labels_B).images_BIHW


def teacher_for(
    student: Student, method: Method, teacher_name: str | None, device: torch.device | str = "cpu"
) -> LoadedTeacher | None:
    """The teacher that a method needs; None where it needs none.

    Raises:
        Refused: it cannot be had, see `load_teacher_of_student`; or it is named and not needed.
    """
    if method.timesteps is None:
        return load_teacher_of_student(student, teacher_name, device)
    if teacher_name is not None:
        raise Refused(f"--teacher {teacher_name}: {method.name} needs no teacher")
    return None


def make_images(
    make: Make,
    labels_N: npt.NDArray[np.int64],
    batch_size: int,
    store: ImageStore,
    *,
    device: torch.device | str = "cpu",
    report: Report,
    should_stop: ShouldStop,
) -> None:
    """Make the images that a store lacks, batch by batch.

    Batches are cut at multiples of their size whatever is there, so that a job which goes on makes the same bytes.

    Raises:
        Refused, Failed: as the store does.
        Stopped: `should_stop` said so; whole batches are kept.
    """
    total = len(labels_N)
    store.begin()
    report(store.num_kept, total, "")
    for first in range(0, total, batch_size):
        labels_B = torch.from_numpy(labels_N[first : first + batch_size])
        if store.holds(first, len(labels_B)):
            continue
        if should_stop():
            raise Stopped(store.left_behind())
        store.keep(first, make(first, labels_B.to(device)))
        report(store.num_kept, total, "")
    store.finish(labels_N)
