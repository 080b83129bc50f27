"""Every way of making images that evaluation compares, behind one call: labels in, images and tokens out.

All methods of one evaluation start from the same noise, image by image, where they start from noise at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.lineage import load_teacher_of_pairs
from distill.sampling.baselines import TokenFrequencies, sample_onestep_star, sample_skip_n
from distill.sampling.method_spec import PreTrained, usual_methods
from distill.sampling.teacher_involved import sample_teacher_involved
from distill.student.sampler import most_at_once, sample_sequence, sampling_noise
from distill.student.student import Student
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.teachers.base import Teacher, to_unit_range
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.text.encoders import texts_of_pairs
from generate_pairs.trajectory import Draw, MapNoise, walk
from shards.core.errors import Refused
from shards.dataset.manifest import Manifest, View
from shards.dataset.reader import pairs_of
from shards.format.noise import uniform_numbers
from shards.storage.paths import Location

PAPERS_SKIPS = {10: (1, 2), 256: (106, 156)}
"""What Distilled Decoding 1 skips of VAR's 10 scales and of LlamaGen's 256 tokens."""

TEACHER_STREAM = 2
ONESTEP_STREAM = 3
SKIP_STREAM = 4
"""Of the seed's uniform numbers, apart from `SAMPLING_STREAM`: the teacher's draws, onestep*'s, and from the last on
those that fill what skip-1, skip-2, ... leave out."""


@dataclass(frozen=True)
class GeneratedImages:
    """What a method made: images (B, channels, height, width) in [0, 1] and the tokens behind them (B, L)."""

    images_BIHW: Tensor
    tokens_BL: Tensor


@dataclass(frozen=True)
class Methods:
    """A teacher, its student and its token frequencies, and all that can be made with them."""

    teacher: Teacher
    settings: SamplingSettings
    flow_map: FlowMap
    student: Student
    frequencies_KLV: Tensor
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Teacher and students first, then what they are compared against."""
        layout = self.teacher.layout
        S = layout.num_steps
        skips = PAPERS_SKIPS.get(S) or ((1, 2) if S < 8 else (S // 4, S // 2))
        students = [f"student-{number}" for number, _ in enumerate(self.student.timesteps, 1)]
        involved = (method.name for method in usual_methods(self.student.timesteps))
        return ("teacher", "teacher-flow", *students, *involved, "onestep*", *(f"skip-{n}" for n in skips))

    def num_steps(self, method: str) -> int:
        """Network passes that make one image, as the paper counts them."""
        steps = self.teacher.layout.num_steps
        if method.startswith("pre-trained-"):
            return PreTrained.parse(method, self.teacher.layout).num_steps(self.teacher.layout)
        kind, _, number = method.partition("-")
        if kind == "student":
            return int(number)
        if kind == "skip":
            return steps - int(number)
        return 1 if kind == "onestep*" else steps

    def sequence(self, method: str, first: int, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L, C) and tokens (B, L) of images `first` onwards; skip-n gives the teacher's own."""
        kind, _, number = method.partition("-")
        if kind == "student":
            timesteps = self.student.timesteps[: int(number)]
            sequence = sample_sequence(self.student, self.noise(first, len(labels_B)), labels_B, timesteps)
            return sequence.embeddings_BLC, sequence.tokens_BL
        if method.startswith("pre-trained-"):
            involved = PreTrained.parse(method, self.teacher.layout)
            noise_BLC = self.noise(first, len(labels_B))
            sequence = sample_teacher_involved(
                involved,
                self.teacher,
                self.student,
                noise_BLC,
                labels_B,
                self.settings,
                MapNoise(self.flow_map, noise_BLC)
                if involved.from_noise
                else self.draw(TEACHER_STREAM, first, len(labels_B)),
            )
            return sequence.embeddings_BLC, sequence.tokens_BL
        if method == "teacher-flow":
            choose = MapNoise(self.flow_map, self.noise(first, len(labels_B)))
            tokens_BL = walk(self.teacher, labels_B, self.settings, choose)
        elif kind == "onestep*":
            uniform_BL = self.uniform(ONESTEP_STREAM, first, len(labels_B))
            tokens_BL = sample_onestep_star(self.frequencies_KLV, self.counted_as(labels_B), uniform_BL)
        else:
            draw = self.draw(TEACHER_STREAM, first, len(labels_B))
            tokens_BL = walk(self.teacher, labels_B, self.settings, draw)
        return self.teacher.tokenizer.embed(tokens_BL), tokens_BL

    @torch.inference_mode()
    def make(
        self, method: str, first: int, labels_B: Tensor, drawn_BL: Tensor | None = None
    ) -> GeneratedImages:
        """Images `first` onwards by one method; an image is the same in any batch, up to the rounding of products.

        `drawn_BL` are the tokens of the method `teacher` for these images, if they are known: skip-n begins with them.
        """
        kind, _, number = method.partition("-")
        if kind == "skip":
            tokens_BL = self.sequence("teacher", first, labels_B)[1] if drawn_BL is None else drawn_BL
            uniform_BL = self.uniform(SKIP_STREAM + int(number), first, len(labels_B))
            images = sample_skip_n(
                self.teacher,
                tokens_BL,
                int(number),
                self.frequencies_KLV,
                self.counted_as(labels_B),
                uniform_BL,
            )
        else:
            embeddings_BLC, tokens_BL = self.sequence(method, first, labels_B)
            images = self.teacher.tokenizer.decode(embeddings_BLC)
        return GeneratedImages(to_unit_range(images), tokens_BL)

    def counted_as(self, labels_B: Tensor) -> Tensor:
        """Which rows of the table of frequencies labels have: of captions it has one for all, see `count_tokens`."""
        return torch.zeros_like(labels_B) if self.teacher.is_text_conditional else labels_B

    def noise(self, first: int, count: int) -> Tensor:
        """Noise (count, L, C) float32 of images `first` onwards, from the sampling stream of the seed."""
        shape = (self.teacher.layout.num_tokens, self.teacher.codebook_dim)
        return sampling_noise(self.seed, first, count, shape).to(self.teacher.codebook_VC.device)

    def uniform(self, stream: int, first: int, count: int) -> Tensor:
        """Numbers between 0 and 1 (count, L) float64 of images `first` onwards."""
        numbers = uniform_numbers(self.seed, first, count, self.teacher.layout.num_tokens, stream)
        return torch.from_numpy(numbers).to(self.teacher.codebook_VC.device)

    def draw(self, stream: int, first: int, count: int) -> Draw:
        """Chooses tokens by draws of images `first` onwards."""
        return Draw(self.uniform(stream, first, count))


def count_tokens(root: Location, view: View, num_labels: int) -> Tensor:
    """Token frequencies (K, L, V) of a view's training pairs, of the K classes below `num_labels`.

    The others count as one class more, for the marginals: a table of all of ImageNet's would be tens of gigabytes.
    Captions are all one class: most come up once, and a frequency of one pair would be that pair.
    """
    spec = view.spec
    total = 1 if spec.captions is not None else spec.num_classes
    classes = min(num_labels, total)
    rest = classes < total
    frequencies = TokenFrequencies(classes + rest, spec.num_tokens, spec.vocab_size)
    for tokens_BL, labels_B in pairs_of(root, view):
        frequencies.add(tokens_BL, labels_B.clamp(max=classes - 1 + rest))
    return frequencies.probabilities()[:classes]


def open_methods(
    student: Student,
    teacher_name: str,
    pairs_root: Location,
    seed: int,
    num_images: int,
    device: str = "cpu",
) -> Methods:
    """Everything that can be compared with a student, sampled with the settings that made its pairs.

    Labels are 0, 1, 2 ... in turn, so that `num_images` says of which classes, or captions, there will be images.

    Raises:
        Refused: the student learned from other pairs, or the pairs come from another teacher.
    """
    manifest = Manifest.open(pairs_root)
    if student.fingerprint is None:
        raise Refused(
            f"nobody knows which pairs this student learned from, so it is not compared with {pairs_root}"
        )
    if student.fingerprint != manifest.spec.fingerprint:
        raise Refused(
            f"the student learned from pairs {student.fingerprint[:12]}, but {pairs_root} holds pairs "
            f"{manifest.spec.fingerprint[:12]}"
        )
    made_by, flow = manifest.spec.lineage["teacher"], manifest.spec.lineage["flow_map"]
    teacher = load_teacher_of_pairs(manifest, teacher_name, getattr(torch, made_by["dtype"])).teacher.to(
        device
    )
    if manifest.spec.captions is not None:
        texts = texts_of_pairs(pairs_root, manifest.spec, device)
        student, teacher = student.with_texts(texts), teacher.with_texts(texts)
    flow_map = FlowMap(teacher.codebook_VC.float(), flow["solver_steps"])
    frequencies = count_tokens(pairs_root, manifest.view(student.num_pairs), num_images).to(device)
    return Methods(
        teacher,
        SamplingSettings.of(made_by),
        flow_map,
        student,
        frequencies,
        seed,
    )


def make_batches(
    methods: Methods, method: str, labels: Tensor, drawn: Tensor | None = None
) -> Iterator[tuple[slice, GeneratedImages]]:
    """Images in [0, 1] and tokens of all labels by one method, a batch at a time, each with its place among them.

    `drawn` are the tokens of the method `teacher`, if they are known.
    """
    device = methods.teacher.codebook_VC.device
    most = most_at_once(methods.teacher.tokenizer.image_shape)
    for first in range(0, len(labels), most):
        span = slice(first, min(first + most, len(labels)))
        drawn_BL = None if drawn is None else drawn[span].long().to(device)
        yield span, methods.make(method, first, labels[span].to(device), drawn_BL)
