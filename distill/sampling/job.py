"""One sampling job: what determines its images, how to generate them, and the loop that generates the missing ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.config import NoiseWeight, noise_weight_error
from distill.lineage import load_teacher_of_student
from distill.sampling.image_store import Grid, ImageFolder, ImageStore, NpzFile
from distill.sampling.method_spec import Method, StudentAlone, TeacherAlone, join_numbers
from distill.sampling.methods import Methods
from distill.sampling.options import (
    IMAGES_PER_LABEL,
    SampleOptions,
    resolve_captions,
    resolve_labels,
    resolve_method,
)
from distill.student.export import CONFIG_FILE, ExportConfig, export_folder, read_export_config
from distill.student.sampler import check_labels, max_batch_size, sample_batch
from distill.student.student import Student
from generate_pairs.compute.devices import chosen_device
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.checkpoints import LoadedTeacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.text.encoders import describe_encoder
from shards.core.callbacks import Report, ShouldStop
from shards.core.errors import Refused, Stopped
from shards.core.units import format_bytes
from shards.dataset.captions import captions_sha256
from shards.format.spec import without_names
from shards.storage.files import refuse_unwritable, sha256_bytes

MAX_GRID_COLUMNS = 20
LISTED_LABELS = 20
"""More labels than these are described by their number and sha256."""

Generate = Callable[[int, Tensor], Tensor]
"""(index of the first image, labels (B,)) -> images (B, 1 or 3, height, width) in [0, 1]."""


@dataclass(frozen=True)
class SamplingJob:
    """A checked sampling job; the student has no weights, and its captions are those of the job."""

    options: SampleOptions
    student: Student
    captions: tuple[str, ...] | None
    method: Method
    labels_N: npt.NDArray[np.int64]
    noise_weight: NoiseWeight
    device: str
    store: ImageStore

    def load_teacher(self) -> LoadedTeacher | None:
        """The teacher that the method needs; None for methods without a teacher.

        Raises:
            Refused: it cannot be loaded, see `load_teacher_of_student`; or it is named and the method needs none.
        """
        name = self.options.teacher
        if not isinstance(self.method, StudentAlone):
            return load_teacher_of_student(self.student, name, self.device)
        if name is not None:
            raise Refused(f"--teacher {name}: {self.method.name} needs no teacher")
        return None

    def load(self, teacher: LoadedTeacher | None) -> Generate:
        """Load the student's weights; the result generates images. Raises `Refused` or `Failed` if that is impossible."""
        options = self.options
        refuse_unwritable(options.out.parent if options.out.suffix else options.out)
        student = Student.from_pretrained(options.student, self.device)
        student.noise_weight = self.noise_weight
        if self.captions is not None:
            student = student.with_captions(self.captions, options.text_encoder, self.device)
        return open_method(student, self.method, options.seed, teacher)

    def run(self, generate: Generate, report: Report, should_stop: ShouldStop) -> None:
        """Generate the images that the store lacks, batch by batch.

        Batches are always cut at multiples of their size, so that a resumed job generates the same bytes.

        Raises:
            Refused, Failed: the store raises it.
            Stopped: `should_stop` returned True; complete batches are saved.
        """
        store, total = self.store, len(self.labels_N)
        batch_size = self.options.batch_size or max_batch_size(self.student.tokenizer.image_shape)
        store.begin()
        report(store.num_saved, total, "")
        for first in range(0, total, batch_size):
            span = slice(first, first + batch_size)
            if store.saved_N[span].all():
                continue
            if should_stop():
                raise Stopped(store.describe_progress())
            store.save(first, generate(first, torch.from_numpy(self.labels_N[span]).to(self.device)))
            report(store.num_saved, total, "")
        store.finish(self.labels_N)

    def describe(self) -> list[str]:
        """The job in five lines, before it runs."""
        out, count = self.options.out, len(self.labels_N)
        channels, height, width = self.student.tokenizer.image_shape
        num_bytes = count * height * width * (3 if out.suffix == ".npz" else channels)
        steps = self.method.num_steps(self.student.layout)
        kinds = {".png": "one grid", ".npz": "the ADM evaluator's npz", "": "a folder of PNG files"}
        return [
            f"method  {self.method.describe()}: {steps} network passes an image",
            f"images  {count:,} of {channels} x {height} x {width}, {self.store.num_saved:,} exist already",
            f"labels  {self.store.request['labels']} in turn",
            f"seed    {self.options.seed}",
            f"out     {out}, {kinds[out.suffix]}; {format_bytes(num_bytes)} of pixels",
        ]


def resolve_job(options: SampleOptions) -> SamplingJob:
    """Check the options of a job and fill in defaults; loads no weights and writes nothing.

    Raises:
        Refused: an option is invalid or does not fit the student, or other images are stored at `options.out`.
        Failed: the download failed.
    """
    student = Student.load_without_weights(options.student)
    captions = resolve_captions(student, options)
    if captions is not None:
        student = student.with_captions(captions, options.text_encoder)
        if options.text_encoder is not None:
            describe_encoder(options.text_encoder)
    elif options.text_encoder is not None:
        raise Refused("--text-encoder: this student draws images for classes and uses no text encoder")
    method = resolve_method(student, options)
    labels, num_images = resolve_labels(student, options, captions)
    labels_N = np.resize(np.array(labels, dtype=np.int64), num_images)
    check_labels(labels_N, student.num_classes)
    config = read_export_config(export_folder(options.student, (CONFIG_FILE,)))
    weight = config.noise_weight if options.noise_weight is None else options.noise_weight
    if error := noise_weight_error(weight, config.timesteps):
        raise Refused(f"--noise-weight: {error}")
    request = sample_request(config, method, labels, options.seed, num_images, weight, captions)
    store: ImageStore
    if options.out.suffix == ".png":
        store = Grid(options.out, request, len(labels) if 1 < len(labels) <= MAX_GRID_COLUMNS else IMAGES_PER_LABEL)
    else:
        store = NpzFile(options.out, request) if options.out.suffix else ImageFolder(options.out, request)
    device = chosen_device(options.device, "--device")
    return SamplingJob(options, student, captions, method, labels_N, weight, device, store)


def sample_request(
    config: ExportConfig,
    method: Method,
    labels: Sequence[int],
    seed: int,
    num_images: int,
    noise_weight: NoiseWeight,
    captions: Sequence[str] | None,
) -> dict[str, Any]:
    """Everything that determines the images of a job, as JSON. Batch size and device only affect rounding.

    Labels are indices of `captions`; None for classes.
    """
    timesteps = list(method.timesteps) if isinstance(method, StudentAlone) else None
    lineage = None if timesteps is not None or config.lineage is None else without_names(config.lineage)
    # JSON has no tuples.
    weight = list(noise_weight) if isinstance(noise_weight, tuple) else noise_weight
    hashed = {} if captions is None else {"captions_sha256": captions_sha256(captions)}
    return hashed | {
        "student_sha256": config.student_sha256,
        "tokenizer_sha256": config.tokenizer_sha256,
        "method": method.name,
        "timesteps": timesteps,
        "noise_weight": None if isinstance(method, TeacherAlone) else weight,
        "lineage": lineage,
        "seed": seed,
        "labels": describe_labels(labels),
        "num_images": num_images,
    }


def describe_labels(labels: Sequence[int]) -> str:
    """Labels that are used in turn: `0..9`, `3,7`, or their number and sha256."""
    if len(labels) > 2 and tuple(labels) == tuple(range(len(labels))):
        return f"0..{len(labels) - 1}"
    if len(labels) <= LISTED_LABELS:
        return join_numbers(labels)
    return f"{len(labels):,} labels, sha256 {sha256_bytes(np.array(labels, dtype='<i8').tobytes())}"


def open_method(student: Student, method: Method, seed: int, teacher: LoadedTeacher | None) -> Generate:
    """The function that generates images by a method, on the device of the student, which is in eval mode."""
    if isinstance(method, StudentAlone):
        timesteps = method.timesteps
        return lambda first, labels_B: sample_batch(student, first, labels_B, seed, timesteps).images_BIHW
    if teacher is None or student.lineage is None:
        raise ValueError(f"{method.name} needs the teacher and the student's lineage")
    model = teacher.teacher if student.texts is None else teacher.teacher.with_texts(student.texts)
    settings = SamplingSettings.of(student.lineage["teacher"])
    flow_map = FlowMap(model.codebook_VC.float(), student.lineage["flow_map"]["solver_steps"])
    # The methods of a sampling job do not use token frequencies.
    methods = Methods(model, settings, flow_map, student, torch.empty(0), seed)
    return lambda first, labels_B: methods.generate(method, first, labels_B).images_BIHW
