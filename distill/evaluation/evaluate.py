"""Numbers for every method, by a named protocol: evaluation.json and the image grids beside it.

Images are judged as they are made: features are kept, and of the images as many as the grids show. What is finished of an
interrupted evaluation is kept, too, and the same command goes on.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.config import EvaluationConfig
from distill.evaluation.feature_extractors.clip_score import ClipScore
from distill.evaluation.partial_results import FOLDER, MethodResult, PartialResults
from distill.evaluation.protocols import check_clip, check_evaluation, open_scorer
from distill.evaluation.sample_grids import save_samples, shown_captions
from distill.evaluation.scorer import CLIP_SCORE, SCORES, Scorer, requested_classes
from distill.evaluation.teacher_images import TeacherImages
from distill.evaluation.timing import BATCH_SIZES, time_methods
from distill.images import grid_size
from distill.sampling.baselines import skip_n_fill
from distill.sampling.methods import Methods, make_batches, open_methods
from distill.student.sampler import most_at_once
from distill.student.student import Student
from generate_pairs.compute.threads import computing_threads
from generate_pairs.digits.dataset import DigitsSplit, load_digits_split
from generate_pairs.teachers.base import Tokenizer, to_unit_range
from shards.core.callbacks import Report, ShouldStop
from shards.core.errors import Stopped
from shards.dataset.manifest import Manifest
from shards.storage.files import commit_bytes, sha256_file
from shards.storage.paths import Location

SCHEMA_VERSION = 1
EVALUATION_FILE = "evaluation.json"
REUSED_METHODS = ("teacher", "teacher-flow")
"""Methods whose tokens others begin with, or are held against."""

Row = dict[str, Any]


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
        out: folder of evaluation.json and samples/, and of what an interrupted evaluation keeps.
        config: protocol, number of images, seed, device.
        report: called with (methods done, methods in all, the next method); each noise seed counts.
        should_stop: asked between batches of images.
        name: of the file; `evaluation-PROTOCOL.json` where the protocol is another than the run's own.

    Raises:
        Refused: student, teacher and pairs do not belong together, the protocol is for other images, or something that
            it needs is missing.
        Stopped: `should_stop` said so; finished methods are kept.
    """
    with computing_threads(1):
        student = Student.from_pretrained(student_folder, config.device)
        check_evaluation(config, student.tokenizer.image_shape)
        check_clip(config, student.is_text_conditional)
        methods = open_methods(
            student, teacher_name, pairs_root, config.seed, config.num_images, config.device
        )
        scorer = open_scorer(config, student.tokenizer.image_shape)
        teacher_images = (
            TeacherImages.beside(Manifest.open(pairs_root), methods.teacher.tokenizer, config.num_images)
            if scorer
            else None
        )
        clip = None if config.clip is None else ClipScore.load(config.clip, config.device)
        facts = {
            **config.asked,
            "device": config.device,
            **(scorer.facts if scorer else {}),
            **({"teacher_images": len(teacher_images)} if teacher_images else {}),
            **({"clip_sha256": clip.sha256} if clip else {}),
            "student_sha256": sha256_file(student_folder / "student.safetensors"),
            "noise_weight": student.noise_weight,
        }
        identity = {
            **facts,
            "export": sha256_file(student_folder / "config.json"),
            "fingerprint": student.fingerprint,
            "first_teacher_image": teacher_images.view.first if teacher_images else None,
            "torch": torch.__version__,
        }
        partial = PartialResults.open(out / FOLDER / Path(name).stem, identity)
        if scorer and teacher_images:
            scorer = with_teacher_reference(
                scorer, teacher_images, partial, lambda note: report(0, 1, note), should_stop
            )
        rows, samples = evaluate_methods(methods, scorer, clip, config, partial, report, should_stop)
    result = {
        "schema_version": SCHEMA_VERSION,
        **facts,
        **shown_captions(methods.student, config.num_images),
        "rows": rows,
    }
    save_samples(out / "samples", samples)
    commit_bytes(out / name, (json.dumps(result, indent=2) + "\n").encode())
    partial.clear()
    return result


def evaluate_methods(
    methods: Methods,
    scorer: Scorer | None,
    clip: ClipScore | None,
    config: EvaluationConfig,
    partial: PartialResults,
    report: Report,
    should_stop: ShouldStop,
) -> tuple[list[Row], dict[str, Tensor]]:
    """A row for each method, before them those of the real images if there are any, and the methods' first images.

    Args:
        methods: what is compared.
        scorer: the protocol's; None where nothing is held against real images.
        clip: tells how well images fit captions; None for no such score.
        config: numbers of images and of noise seeds.
        partial: what was finished before, and is now.
        report: as in `evaluate`.
        should_stop: as in `evaluate`.

    Returns:
        Rows of means over noise seeds, and images in [0, 1] by method, of the first seed.
    """
    split = load_digits_split() if config.protocol == "digits" else None
    known = 2 if split and scorer else 0
    total = known + len(methods.names) * config.repeats
    rows: list[Row] = []
    if split and scorer:
        for name, real_images, real_labels in reference_rows(split, methods.teacher.tokenizer):
            report(len(rows), total, name)
            rows.append(_row(name, scorer.scores(real_images, real_labels)))
    image_shape = methods.teacher.tokenizer.image_shape
    # A batch size that is never needed here may not even fit into memory.
    most = min(config.num_images, most_at_once(image_shape))
    sizes = [size for size in BATCH_SIZES if size <= most]
    seconds = partial.times(lambda: time_methods(methods, sizes))
    results: dict[str, list[MethodResult]] = {method: [] for method in methods.names}
    done = known
    for seed in config.seeds:
        seeded, tokens = replace(methods, seed=seed), dict[str, Tensor]()
        for method in methods.names:
            report(done, total, method)
            result = partial.result(method, seed)
            if result is None:
                try:
                    result = evaluate_method(
                        seeded, method, config.num_images, scorer, clip, tokens, should_stop
                    )
                except Stopped as stopped:
                    raise Stopped(f"{done - known} of {total - known} methods are done and kept") from stopped
                partial.keep(method, seed, result)
            if result.tokens_NL is not None:
                tokens[method] = result.tokens_NL
            results[method].append(replace(result, tokens_NL=None))
            done += 1
    for method, made in results.items():
        facts = {
            "num_steps": methods.num_steps(method),
            "num_parameters": num_parameters(methods, method),
            "fill": skip_n_fill(methods.teacher) if method.startswith("skip-") else None,
            "seconds_per_image": seconds.get(method),
            "decode_seconds_per_image": seconds["decode"],
        }
        rows.append(_row(method, over_repeats([result.numbers for result in made]), **facts))
    report(total, total, "")
    return rows, {method: made[0].images_BIHW for method, made in results.items()}


def with_teacher_reference(
    scorer: Scorer,
    teacher_images: TeacherImages,
    partial: PartialResults,
    notify: Callable[[str], None],
    should_stop: ShouldStop,
) -> Scorer:
    """A judge who has seen the teacher's images, too.

    Raises:
        Stopped: `should_stop` said so.
    """

    def features() -> Iterator[Tensor]:
        done = 0
        for images_BIHW in teacher_images.batches():
            if should_stop():
                raise Stopped("in the middle of the teacher's images, and no method is done yet")
            notify(f"{done:,} of the teacher's {len(teacher_images):,} images")
            done += len(images_BIHW)
            yield images_BIHW

    return scorer.with_teacher_reference(partial.moments(lambda: scorer.moments(features())))


def evaluate_method(
    methods: Methods,
    method: str,
    num_images: int,
    scorer: Scorer | None,
    clip: ClipScore | None,
    tokens: Mapping[str, Tensor],
    should_stop: ShouldStop,
) -> MethodResult:
    """Make all images of a method with one noise seed and judge them as they come.

    Args:
        methods: with the seed.
        method: which of them.
        num_images: how many; their labels are 0, 1, 2 ... in turn.
        scorer: as in `evaluate_methods`.
        clip: as in `evaluate_methods`.
        tokens: tokens (N, L) of the methods in `REUSED_METHODS` before this one.
        should_stop: asked between batches.

    Raises:
        Stopped: `should_stop` said so.
    """
    labels = torch.arange(num_images) % methods.student.num_classes
    features = scorer.begin() if scorer else None
    columns, rows = grid_size(methods.teacher.tokenizer.image_shape[-1])
    shown: list[Tensor] = []
    kept: list[Tensor] = []
    fits: list[Tensor] = []
    matched, followed = 0, shares_noise_with_teacher(method)
    for span, made in make_batches(methods, method, labels, tokens.get("teacher")):
        if should_stop():
            raise Stopped("in the middle of a method")
        if features:
            features.add(made.images_BIHW)
        if clip and methods.student.texts is not None:
            captions = methods.student.texts.captions
            fits.append(clip.scores(made.images_BIHW, [captions[label] for label in labels[span].tolist()]))
        # A copy: a part of a batch would keep all of it.
        shown.append(made.images_BIHW[: max(0, columns * rows - span.start)].cpu().clone())
        made_BL = made.tokens_BL.int().cpu()
        if method in REUSED_METHODS:
            kept.append(made_BL)
        if followed:
            target_BL = made_BL if method == "teacher-flow" else tokens["teacher-flow"][span]
            matched += int((made_BL == target_BL).sum())
    classes = requested_classes(methods.student.texts, labels)
    numbers = scorer.scores_of(features, classes) if scorer and features else dict.fromkeys(SCORES)
    numbers[CLIP_SCORE] = torch.cat(fits).mean().item() if fits else None
    num_tokens = num_images * methods.teacher.layout.num_tokens
    return MethodResult(
        {**numbers, "token_match": matched / num_tokens if followed else None},
        torch.cat(shown),
        torch.cat(kept) if kept else None,
    )


def over_repeats(numbers: Sequence[Mapping[str, float | None]]) -> Row:
    """Means over noise seeds, and under `NAME_std` the sample standard deviation of each score; None of one seed."""
    means: Row = {}
    deviations: Row = {}
    for key in numbers[0]:
        values = [value for found in numbers if (value := found[key]) is not None]
        means[key] = statistics.fmean(values) if values else None
        if key in (*SCORES, CLIP_SCORE):
            deviations[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return {**means, **deviations}


def reference_rows(split: DigitsSplit, tokenizer: Tokenizer) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What scores are held against: unseen real images, and the reference through the tokenizer, each with labels."""
    device = tokenizer.codebook_VC.device
    yield "real", to_unit_range(split.test_images).to(device), split.test_labels
    with torch.inference_mode():
        decoded = tokenizer.decode(tokenizer.embed(tokenizer.encode(split.train_images.to(device))))
    yield "reconstruction", to_unit_range(decoded), split.train_labels


def shares_noise_with_teacher(method: str) -> bool:
    """Whether a method makes its tokens of the noise as the teacher's flow map does, so that they can be compared."""
    return method == "teacher-flow" or method.startswith("student-")


def num_parameters(methods: Methods, method: str) -> int | None:
    """Parameters of the network that makes a method's tokens, without the tokenizer."""
    # As the paper counts a method that involves both.
    if method.startswith(("student-", "pre-trained-")):
        return sum(p.numel() for p in methods.student.network.parameters())
    if method == "onestep*":
        return None
    return sum(p.numel() for p in methods.teacher.transformer.parameters())


def _row(method: str, scores: Row, **facts: Any) -> Row:
    nothing = dict.fromkeys(
        (
            "num_steps",
            "num_parameters",
            "fill",
            "token_match",
            "seconds_per_image",
            "decode_seconds_per_image",
            CLIP_SCORE,
            *(f"{score}_std" for score in (*SCORES, CLIP_SCORE)),
        )
    )
    return {"method": method, **nothing, **facts, **scores}
