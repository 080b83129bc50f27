"""The methods that evaluation compares, behind one call: labels in, images and tokens out.

All methods of one evaluation that start from noise start from the same noise, image by image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.lineage import load_teacher_of_pairs
from distill.sampling.baselines import TokenFrequencies, sample_onestep_star, sample_skip_n
from distill.sampling.method_spec import (
    ONESTEP_STAR,
    TEACHER,
    TEACHER_FLOW,
    Method,
    OnestepStar,
    PreTrained,
    SkipN,
    StudentAlone,
    TeacherAlone,
    default_pre_trained,
)
from distill.sampling.teacher_involved import sample_teacher_involved
from distill.student.model import TokenSequence
from distill.student.sampler import max_batch_size, sample_sequence, sampling_noise
from distill.student.student import Student
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.base import Teacher, to_unit_range
from generate_pairs.teachers.checkpoints import LoadedTeacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.text.encoders import dataset_caption_features
from generate_pairs.trajectory import Choice, Draw, MapNoise, generate_tokens
from shards.core.errors import Refused
from shards.dataset.manifest import Manifest, View
from shards.dataset.reader import read_view
from shards.format.noise import uniform_numbers
from shards.storage.paths import Location

PAPERS_SKIPS = {10: (1, 2), 256: (106, 156)}
"""The N of skip-N in Distilled Decoding 1, by AR steps: of VAR's 10 scales and of LlamaGen's 256 tokens."""

TEACHER_STREAM = 2
ONESTEP_STREAM = 3
SKIP_STREAM = 4
"""Streams of the seed's uniform numbers, distinct from `SAMPLING_STREAM`: for the teacher's draws, for onestep*, and
(SKIP_STREAM + N) for the steps that skip-N leaves out."""


@dataclass(frozen=True)
class GeneratedImages:
    """Images (B, channels, height, width) in [0, 1] and their tokens (B, L)."""

    images_BIHW: Tensor
    tokens_BL: Tensor


@dataclass(frozen=True)
class Methods:
    """Generates images by any method, with teacher and student in eval mode.

    `frequencies_KLV` are the token frequencies of the training pairs, for onestep* and skip-N.
    """

    teacher: Teacher
    settings: SamplingSettings
    flow_map: FlowMap
    student: Student
    frequencies_KLV: Tensor
    seed: int

    @property
    def compared(self) -> tuple[Method, ...]:
        """The methods of an evaluation: the teacher and the students first, then the baselines."""
        S = self.teacher.layout.num_steps
        skips = PAPERS_SKIPS.get(S) or ((1, 2) if S < 8 else (S // 4, S // 2))
        timesteps = self.student.timesteps
        students = [StudentAlone(timesteps[:count]) for count in range(1, len(timesteps) + 1)]
        return (
            *(TEACHER, TEACHER_FLOW, *students, *default_pre_trained(timesteps), ONESTEP_STAR),
            *(SkipN(n) for n in skips),
        )

    def sequence(self, method: Method, first: int, labels_B: Tensor) -> TokenSequence:
        """The sequences of images `first` onwards, by any method but skip-N.

        Raises:
            ValueError: the method is skip-N.
        """
        count = len(labels_B)
        match method:
            case StudentAlone(timesteps):
                return sample_sequence(self.student, self.noise(first, count), labels_B, timesteps)
            case PreTrained(from_noise=from_noise):
                choose, noise_BLC = self._teacher_choice(from_noise, first, count), self.noise(first, count)
                return sample_teacher_involved(
                    method, self.teacher, self.student, noise_BLC, labels_B, self.settings, choose
                )
            case TeacherAlone(from_noise):
                choose = self._teacher_choice(from_noise, first, count)
                tokens_BL = generate_tokens(self.teacher, labels_B, self.settings, choose)
            case OnestepStar():
                uniform_BL = self._uniform(ONESTEP_STREAM, first, count)
                tokens_BL = sample_onestep_star(self.frequencies_KLV, self._frequency_rows(labels_B), uniform_BL)
            case _:
                raise ValueError(f"{method.name} has no sequence of its own")
        return TokenSequence(self.teacher.tokenizer.embed(tokens_BL), tokens_BL)

    @torch.inference_mode()
    def generate(
        self, method: Method, first: int, labels_B: Tensor, teacher_tokens_BL: Tensor | None = None
    ) -> GeneratedImages:
        """Images `first` onwards; an image is the same in any batch, up to the rounding of matrix products.

        `teacher_tokens_BL` are the tokens of the method `teacher` for these images, if they are known: skip-N starts with
        them. Labels are int64.
        """
        if not isinstance(method, SkipN):
            sequence = self.sequence(method, first, labels_B)
            images_BIHW = self.teacher.tokenizer.decode(sequence.embeddings_BLC)
            return GeneratedImages(to_unit_range(images_BIHW), sequence.tokens_BL)
        tokens_BL = teacher_tokens_BL
        if tokens_BL is None:
            tokens_BL = self.sequence(TEACHER, first, labels_B).tokens_BL
        uniform_BL = self._uniform(SKIP_STREAM + method.n, first, len(labels_B))
        rows_B = self._frequency_rows(labels_B)
        images_BIHW = sample_skip_n(self.teacher, tokens_BL, method.n, self.frequencies_KLV, rows_B, uniform_BL)
        return GeneratedImages(to_unit_range(images_BIHW), tokens_BL)

    def noise(self, first: int, count: int) -> Tensor:
        """Noise (count, L, C) float32 of images `first` onwards, from the sampling stream of the seed."""
        shape = (self.teacher.layout.num_tokens, self.teacher.codebook_dim)
        return sampling_noise(self.seed, first, count, shape).to(self.teacher.codebook_VC.device)

    def _teacher_choice(self, from_noise: bool, first: int, count: int) -> Choice:
        if from_noise:
            return MapNoise(self.flow_map, self.noise(first, count))
        return Draw(self._uniform(TEACHER_STREAM, first, count))

    def _uniform(self, stream: int, first: int, count: int) -> Tensor:
        """Numbers between 0 and 1 (count, L) float64 of images `first` onwards."""
        numbers = uniform_numbers(self.seed, first, count, self.teacher.layout.num_tokens, stream)
        return torch.from_numpy(numbers).to(self.teacher.codebook_VC.device)

    def _frequency_rows(self, labels_B: Tensor) -> Tensor:
        """Rows of the frequency table by label. All captions share row 0, see `count_tokens`."""
        return torch.zeros_like(labels_B) if self.teacher.is_text_conditional else labels_B


def count_tokens(root: Location, view: View, num_labels: int) -> Tensor:
    """Token frequencies (K, L, V) of a view's training pairs, for the K classes below `num_labels`.

    The other classes are counted together, as one more class, for the marginals: a table of all ImageNet classes would
    take tens of gigabytes. All captions count as one class: most captions have a single pair, and its frequencies would
    reproduce that pair.
    """
    spec = view.spec
    total = 1 if spec.captions is not None else spec.num_classes
    classes = min(num_labels, total)
    rest = classes < total
    frequencies = TokenFrequencies(classes + rest, spec.num_tokens, spec.vocab_size)
    for pairs in read_view(root, view):
        tokens_BL = torch.from_numpy(pairs.tokens_BL.astype("int64"))
        labels_B = torch.from_numpy(pairs.label_B)
        frequencies.add(tokens_BL, labels_B.clamp(max=classes - 1 + rest))
    return frequencies.probabilities()[:classes]


def open_methods(
    student: Student,
    teacher: str | LoadedTeacher,
    pairs_root: Location,
    seed: int,
    num_images: int,
    device: str = "cpu",
) -> Methods:
    """Load everything that a student is compared with; the teacher samples with the settings that made the pairs.

    Labels are 0, 1, 2 ... in turn, so `num_images` determines which classes or captions get images.

    Raises:
        Refused: the student was trained on other pairs, or another teacher made the pairs.
    """
    manifest = Manifest.open(pairs_root)
    if student.fingerprint is None:
        raise Refused(f"this student records no training pairs, so it cannot be compared with the pairs in {pairs_root}")
    if student.fingerprint != manifest.spec.fingerprint:
        raise Refused(
            f"the student was trained on pairs {student.fingerprint[:12]}, but {pairs_root} contains pairs "
            f"{manifest.spec.fingerprint[:12]}"
        )
    teacher_lineage, flow = manifest.spec.lineage["teacher"], manifest.spec.lineage["flow_map"]
    dtype = getattr(torch, teacher_lineage["dtype"])
    model = load_teacher_of_pairs(manifest, teacher, device, dtype).teacher
    if manifest.spec.captions is not None:
        texts = dataset_caption_features(pairs_root, manifest.spec, device)
        student, model = student.with_texts(texts), model.with_texts(texts)
    flow_map = FlowMap(model.codebook_VC.float(), flow["solver_steps"])
    frequencies = count_tokens(pairs_root, manifest.view(student.num_pairs), num_images).to(device)
    settings = SamplingSettings.of(teacher_lineage)
    return Methods(model, settings, flow_map, student, frequencies, seed)


def generate_batches(
    methods: Methods, method: Method, labels: Tensor, teacher_tokens: Tensor | None = None
) -> Iterator[tuple[slice, GeneratedImages]]:
    """Images and tokens of all labels by one method, a batch at a time, each with its range of indices.

    `teacher_tokens` are the tokens (N, L) of the method `teacher`, if they are known.
    """
    device = methods.teacher.codebook_VC.device
    batch_size = max_batch_size(methods.teacher.tokenizer.image_shape)
    for first in range(0, len(labels), batch_size):
        span = slice(first, min(first + batch_size, len(labels)))
        tokens_BL = None if teacher_tokens is None else teacher_tokens[span].long().to(device)
        yield span, methods.generate(method, first, labels[span].to(device), tokens_BL)
