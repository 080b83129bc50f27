"""Numbers for every method, by a named protocol: evaluation.json and the image grids beside it.

Protocol `digits`: features of the shipped classifier against the 1,297 real training digits; precision and recall by
three nearest neighbours in pixel space. Protocol `samples`, for teachers whose real images are not here: the same
methods, images and times, and no score against real images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.baselines import skip_n_fill
from distill.checks import check_evaluation, load_maker
from distill.config import EvaluationConfig
from distill.features import DigitsClassifier, extract, load_digits_classifier
from distill.frechet import Manifold, Moments, frechet_distance, inception_score, precision_recall
from distill.images import captioned_grid, grid_size, image_grid, save_png
from distill.methods import Methods, count_tokens
from distill.sampler import most_at_once
from distill.student import Student
from distill.timing import BATCH_SIZES, seconds_per_image
from generate_pairs.flow_map import FlowMap
from generate_pairs.teachers.base import Tokenizer, to_unit_range
from generate_pairs.teachers.embedded.digits import DigitsSplit, load_digits_split
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.teachers.threads import computing_threads
from shards.errors import Refused, Stopped
from shards.locations import Location
from shards.manifest import Manifest
from shards.reporting import Report, ShouldStop
from shards.storage import commit_bytes, sha256_file

SCHEMA_VERSION = 1
EVALUATION_FILE = "evaluation.json"
SCORES = ("frechet_distance", "inception_score", "precision", "recall", "class_accuracy")
"""What needs real images."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """The real images, and how far others are from them."""

    classifier: DigitsClassifier
    reference: Moments
    real: Manifold

    @classmethod
    def digits(cls, images: Tensor) -> Judge:
        """A judge whose reference are these real images in [0, 1]."""
        classifier = load_digits_classifier()
        return cls(classifier, Moments.of(extract(classifier, images)), Manifold.of(images.flatten(1)))

    def scores(self, images: Tensor, labels: Tensor) -> Row:
        """Frechet distance, inception score, precision, recall and class accuracy of images in [0, 1]."""
        features = extract(self.classifier, images)
        with torch.inference_mode():
            probabilities = self.classifier.probabilities(features)
        nearest = precision_recall(self.real, Manifold.of(images.flatten(1)))
        return {
            "frechet_distance": frechet_distance(self.reference, Moments.of(features)),
            "inception_score": inception_score(probabilities),
            "precision": nearest.precision,
            "recall": nearest.recall,
            "class_accuracy": (probabilities.argmax(1) == labels).double().mean().item(),
        }


def evaluate(
    student_folder: Path,
    teacher_name: str,
    pairs_root: Location,
    out: Path,
    config: EvaluationConfig,
    *,
    report: Report,
    should_stop: ShouldStop,
    name: str = EVALUATION_FILE,
) -> dict[str, Any]:
    """Judge a student, its teacher and the baselines, with one thread; writes evaluation.json and samples/*.png.

    Args:
        student_folder: the student's export.
        teacher_name: the teacher that made its pairs.
        pairs_root: the pairs, whose token frequencies are the baseline onestep*.
        out: folder of evaluation.json and samples/.
        config: protocol, number of images, seed.
        report: called with (methods done, methods in all, the next method).
        should_stop: asked between methods.
        name: of the file; `evaluation-PROTOCOL.json` where the protocol is another than the run's own.

    Raises:
        Refused: student, teacher and pairs do not belong together, or the protocol is for other images.
        Stopped: `should_stop` said so; nothing is kept.
    """
    with computing_threads(1):
        student = Student.from_pretrained(student_folder)
        methods = open_methods(student, teacher_name, pairs_root, config.seed, config.num_images)
        check_evaluation(config, methods.teacher.tokenizer.image_shape)
        rows, samples = judge_all(methods, config, report, should_stop)
    result = {
        "schema_version": SCHEMA_VERSION,
        "protocol": config.protocol,
        "num_images": config.num_images,
        "seed": config.seed,
        "repeats": 1,
        "student_sha256": sha256_file(student_folder / "student.safetensors"),
        "rows": rows,
    }
    save_samples(out / "samples", samples)
    commit_bytes(out / name, (json.dumps(result, indent=2) + "\n").encode())
    return result


def judge_all(
    methods: Methods, config: EvaluationConfig, report: Report, should_stop: ShouldStop
) -> tuple[list[Row], dict[str, Tensor]]:
    """A row for each method, before them those of the real images if there are any, and the methods' images in [0, 1]."""
    split = load_digits_split() if config.protocol == "digits" else None
    judge = Judge.digits(to_unit_range(split.train_images)) if split else None
    total = len(methods.names) + (2 if split else 0)
    rows: list[Row] = []
    if split and judge:
        for name, real_images, real_labels in known_images(split, methods.teacher.tokenizer):
            report(len(rows), total, name)
            rows.append(_row(name, judge.scores(real_images, real_labels)))
    labels = torch.arange(config.num_images) % methods.student.num_classes
    image_shape = methods.teacher.tokenizer.image_shape
    # A batch size that is never needed here may not even fit into memory.
    most = min(config.num_images, most_at_once(image_shape))
    seconds = time_methods(methods, [size for size in BATCH_SIZES if size <= most])
    images: dict[str, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    for method in methods.names:
        if should_stop():
            raise Stopped("the evaluation is not finished, and begins again")
        report(len(rows), total, method)
        images[method], tokens[method] = make_all(methods, method, labels, tokens.get("teacher"))
        scores = judge.scores(images[method], labels) if judge else dict.fromkeys(SCORES)
        facts = {
            "num_steps": methods.num_steps(method),
            "num_parameters": num_parameters(methods, method),
            "fill": skip_n_fill(methods.teacher) if method.startswith("skip-") else None,
            "token_match": token_match(method, tokens),
            "seconds_per_image": seconds.get(method),
            "decode_seconds_per_image": seconds["decode"],
        }
        rows.append(_row(method, scores, **facts))
    report(total, total, "")
    return rows, images


def known_images(split: DigitsSplit, tokenizer: Tokenizer) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What scores are held against: unseen real images, and the reference through the tokenizer, each with labels."""
    yield "real", to_unit_range(split.test_images), split.test_labels
    with torch.inference_mode():
        decoded = tokenizer.decode(tokenizer.embed(tokenizer.encode(split.train_images)))
    yield "reconstruction", to_unit_range(decoded), split.train_labels


def open_methods(
    student: Student, teacher_name: str, pairs_root: Location, seed: int, num_images: int
) -> Methods:
    """Everything that can be compared with a student, sampled with the settings that made its pairs.

    Labels are 0, 1, 2 ... in turn, so that `num_images` says of which classes there will be images.

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
    teacher = load_maker(manifest, teacher_name, getattr(torch, made_by["dtype"])).teacher
    flow_map = FlowMap(teacher.codebook_VC.float(), flow["solver_steps"])
    frequencies = count_tokens(pairs_root, manifest.view(student.num_pairs), num_images)
    return Methods(
        teacher,
        SamplingSettings.of(made_by),
        flow_map,
        student,
        frequencies,
        seed,
    )


def make_all(
    methods: Methods, method: str, labels: Tensor, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Images (N, channels, height, width) in [0, 1] and tokens (N, L) of all labels by one method.

    `drawn` are the tokens of the method `teacher`, if they are known.
    """
    most = most_at_once(methods.teacher.tokenizer.image_shape)
    spans = [slice(first, first + most) for first in range(0, len(labels), most)]
    made = [
        methods.make(method, span.start, labels[span], None if drawn is None else drawn[span])
        for span in spans
    ]
    return torch.cat([part.images_BIHW for part in made]), torch.cat([part.tokens_BL for part in made])


def token_match(method: str, tokens: Mapping[str, Tensor]) -> float | None:
    """The share of tokens that a method makes of the noise as the teacher's flow map does; None without noise."""
    if method != "teacher-flow" and not method.startswith("student-"):
        return None
    return (tokens[method] == tokens["teacher-flow"]).double().mean().item()


def num_parameters(methods: Methods, method: str) -> int | None:
    """Parameters of the network that makes a method's tokens, without the tokenizer."""
    # As the paper counts a method that involves both.
    if method.startswith(("student-", "pre-trained-")):
        return sum(p.numel() for p in methods.student.network.parameters())
    if method == "onestep*":
        return None
    return sum(p.numel() for p in methods.teacher.transformer.parameters())


def time_methods(methods: Methods, batch_sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Seconds per image by batch size, of each method without decoding and of the decoder, under "decode".

    skip-n is left out: here it walks as far as the teacher.
    """

    def maker(method: str) -> Callable[[int], object]:
        def make(batch_size: int) -> object:
            labels_B = torch.arange(batch_size) % methods.student.num_classes
            with torch.inference_mode():
                return methods.sequence(method, 0, labels_B)

        return make

    def decode(batch_size: int) -> object:
        with torch.inference_mode():
            return methods.teacher.tokenizer.decode(methods.noise(0, batch_size))

    makers = {name: maker(name) for name in methods.names if not name.startswith("skip-")}
    measured = {size: seconds_per_image({**makers, "decode": decode}, size) for size in batch_sizes}
    return {name: {str(size): measured[size][name] for size in batch_sizes} for name in (*makers, "decode")}


def save_samples(folder: Path, samples: Mapping[str, Tensor]) -> None:
    """One grid a method, and a comparison whose columns are images from the same noise and label."""
    side = next(iter(samples.values())).shape[-1]
    columns, rows = grid_size(side)
    for method, images in samples.items():
        grid = image_grid(images[: columns * rows], columns)
        save_png(grid, folder / f"{method.replace('*', '-star')}.png")
    shown = [m for m in samples if m == "teacher-flow" or m.startswith("student-") or m == "onestep*"]
    save_png(captioned_grid({m: samples[m][:columns] for m in shown}), folder / "comparison.png")


def _row(method: str, scores: Row, **facts: Any) -> Row:
    nothing = dict.fromkeys(
        (
            "num_steps",
            "num_parameters",
            "fill",
            "token_match",
            "seconds_per_image",
            "decode_seconds_per_image",
        )
    )
    return {"method": method, **nothing, **facts, **scores, "frechet_distance_std": None}
