"""Evaluates methods one after the other: generates their images, scores them batch by batch, and returns table rows.
Rows of real images come first.

Only features are kept of each batch, and as many images as the grids show.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from distill.config import EvaluationConfig
from distill.evaluation.feature_extractors.clip_score import ClipScore
from distill.evaluation.partial_results import MethodResult, PartialResults, Scores
from distill.evaluation.reference_rows import REAL, RECONSTRUCTION, RealImages, ReferenceRows, reconstructed
from distill.evaluation.scorer import AT_REAL_IMAGES, CLIP_SCORE, SCORES, Scorer, requested_classes
from distill.evaluation.timing import BATCH_SIZES, time_methods
from distill.images import grid_size
from distill.sampling.baselines import skip_n_fill
from distill.sampling.method_spec import (
    TEACHER,
    TEACHER_FLOW,
    Method,
    OnestepStar,
    PreTrained,
    SkipN,
    StudentAlone,
)
from distill.sampling.methods import Methods, generate_batches
from distill.student.sampler import max_batch_size
from shards.core.callbacks import Report, ShouldStop
from shards.core.errors import Stopped

REUSED_METHODS = (TEACHER, TEACHER_FLOW)
"""Methods whose tokens other methods start with, or are compared with."""
ROW_KEYS = (
    *("num_steps", "num_parameters", "fill", "token_match", "seconds_per_image", "decode_seconds_per_image"),
    *(AT_REAL_IMAGES, CLIP_SCORE, *(f"{score}_std" for score in (*SCORES, CLIP_SCORE))),
)
"""Keys that every row has; null if they do not apply."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """The parts of one evaluation.

    `scorer` is None if the protocol compares images with nothing, `clip` if no captions are scored. `report` and
    `should_stop` are those of `evaluate`.
    """

    config: EvaluationConfig
    methods: Methods
    scorer: Scorer | None
    clip: ClipScore | None
    partial: PartialResults
    report: Report
    should_stop: ShouldStop
    reference_rows: ReferenceRows = field(default_factory=ReferenceRows)

    @cached_property
    def real_scorer(self) -> Scorer:
        """The scorer of the rows of real images.

        Raises:
            ValueError: the protocol has no scorer.
        """
        if self.scorer is None:
            raise ValueError(f"the protocol {self.config.protocol} has no real images")
        return self.reference_rows.scorer(self.scorer)

    @property
    def total(self) -> int:
        """Units of progress: results of methods, and the rows of real images."""
        return len(self.methods.compared) * self.config.repeats + len(self.reference_rows.images)


def evaluate_methods(evaluation: Evaluation) -> tuple[list[Row], dict[Method, Tensor]]:
    """A row for each method, after the rows of the real images if there are any, and the methods' first images.

    Returns:
        Rows of means over noise seeds, and images in [0, 1] by method, of the first seed.

    Raises:
        Stopped: `should_stop` returned True; finished methods are saved.
    """
    methods, report = evaluation.methods, evaluation.report
    rows = _reference_rows(evaluation)
    seconds = _seconds(evaluation)
    results: dict[Method, list[MethodResult]] = {method: [] for method in methods.compared}
    num_done = 0
    for seed in evaluation.config.seeds:
        tokens: dict[Method, Tensor] = {}
        for method in methods.compared:
            report(len(rows) + num_done, evaluation.total, method.name)
            try:
                result = evaluation.partial.result(method.name, seed)
                if result is None:
                    result = evaluate_method(evaluation, method, seed, tokens)
                    evaluation.partial.save(method.name, seed, result)
            except Stopped as stopped:
                count = len(results) * evaluation.config.repeats
                raise Stopped(f"{num_done} of {count} methods are done and kept") from stopped
            if result.tokens_NL is not None:
                tokens[method] = result.tokens_NL
            results[method].append(replace(result, tokens_NL=None))
            num_done += 1
    for method, repeats in results.items():
        facts = {
            "num_steps": method.num_steps(methods.teacher.layout),
            "num_parameters": num_parameters(methods, method),
            "fill": skip_n_fill(methods.teacher) if isinstance(method, SkipN) else None,
            "seconds_per_image": seconds.get(method.name),
            "decode_seconds_per_image": seconds["decode"],
        }
        rows.append(_row(method.name, mean_over_seeds([result.numbers for result in repeats]), **facts))
    report(evaluation.total, evaluation.total, "")
    return rows, {method: repeats[0].images_BIHW for method, repeats in results.items()}


def _reference_rows(evaluation: Evaluation) -> list[Row]:
    """The rows of real images; scores of finished rows are saved."""
    rows: list[Row] = []
    if evaluation.scorer:
        for name, images in evaluation.reference_rows.images.items():
            measure = partial(_score_real_images, evaluation, name, images, len(rows))
            rows.append(_row(name, evaluation.partial.scores(name, measure)))
    return rows


def _score_real_images(evaluation: Evaluation, name: str, images: RealImages, num_done: int) -> Scores:
    """Score the images of one row batch by batch; `num_done` rows are done."""
    scorer, tokenizer = evaluation.real_scorer, evaluation.methods.teacher.tokenizer
    features, count = scorer.new_accumulator(), 0
    for images_BIHW in images.batches():
        if evaluation.should_stop():
            raise Stopped(f"in the middle of the row {name}, and no method is done yet")
        evaluation.report(num_done, evaluation.total, f"{name}, {count:,} of {images.size:,} images")
        count += len(images_BIHW)
        # Contiguous as a tokenizer's images are: sums of another memory order round differently.
        batch_BIHW = images_BIHW.to(tokenizer.codebook_VC.device).contiguous()
        features.add(reconstructed(tokenizer, batch_BIHW) if name == RECONSTRUCTION else batch_BIHW)
    scores = scorer.scores_of_features(features, images.labels)
    return {**scores, AT_REAL_IMAGES: scores["frechet_distance"]}


def _seconds(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Seconds per image of each method and of the decoder, by batch size, measured once per evaluation."""
    image_shape = evaluation.methods.teacher.tokenizer.image_shape
    # Larger batches than the evaluation generates might not fit into memory.
    largest = min(evaluation.config.num_images, max_batch_size(image_shape))
    sizes = [size for size in BATCH_SIZES if size <= largest]
    return evaluation.partial.times(lambda: time_methods(evaluation.methods, sizes))


def evaluate_method(evaluation: Evaluation, method: Method, seed: int, tokens: Mapping[Method, Tensor]) -> MethodResult:
    """Generate all images of a method with one noise seed and score them batch by batch.

    Labels are 0, 1, 2 ... in turn; `tokens` are those (N, L) of the `REUSED_METHODS` that come before this one.

    Raises:
        Stopped: `should_stop` returned True.
    """
    methods, scorer, clip = replace(evaluation.methods, seed=seed), evaluation.scorer, evaluation.clip
    num_images, texts = evaluation.config.num_images, methods.student.texts
    labels = torch.arange(num_images) % methods.student.num_classes
    features = scorer.new_accumulator() if scorer else None
    columns, rows = grid_size(methods.teacher.tokenizer.image_shape[-1])
    shown: list[Tensor] = []
    token_batches: list[Tensor] = []
    clip_scores: list[Tensor] = []
    num_matches = 0
    for span, batch in generate_batches(methods, method, labels, tokens.get(TEACHER)):
        if evaluation.should_stop():
            raise Stopped("in the middle of a method")
        if features:
            features.add(batch.images_BIHW)
        if clip and texts is not None:
            captions = [texts.captions[label] for label in labels[span].tolist()]
            clip_scores.append(clip.scores(batch.images_BIHW, captions))
        # Cloned, because a view would keep the whole batch in memory.
        shown.append(batch.images_BIHW[: max(0, columns * rows - span.start)].cpu().clone())
        tokens_BL = batch.tokens_BL.int().cpu()
        if method in REUSED_METHODS:
            token_batches.append(tokens_BL)
        if shares_noise_with_teacher(method):
            target_BL = tokens_BL if method == TEACHER_FLOW else tokens[TEACHER_FLOW][span]
            num_matches += int((tokens_BL == target_BL).sum())
    numbers = dict.fromkeys((*SCORES, AT_REAL_IMAGES, CLIP_SCORE, "token_match"))
    if scorer and features:
        numbers |= scorer.scores_of_features(features, requested_classes(texts, labels))
        real = evaluation.reference_rows.images.get(REAL)
        if real and real.size <= num_images:
            numbers[AT_REAL_IMAGES] = evaluation.real_scorer.frechet_distance_of_first(features, real.size)
    if clip_scores:
        numbers[CLIP_SCORE] = torch.cat(clip_scores).mean().item()
    if shares_noise_with_teacher(method):
        numbers["token_match"] = num_matches / (num_images * methods.teacher.layout.num_tokens)
    return MethodResult(numbers, torch.cat(shown), torch.cat(token_batches) if token_batches else None)


def mean_over_seeds(numbers: Sequence[Mapping[str, float | None]]) -> Row:
    """Means over noise seeds, and as `NAME_std` the sample standard deviation of each score; None for one seed."""
    means: Row = {}
    deviations: Row = {}
    for key in numbers[0]:
        values = [value for each in numbers if (value := each[key]) is not None]
        means[key] = statistics.fmean(values) if values else None
        if key in (*SCORES, CLIP_SCORE):
            deviations[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return {**means, **deviations}


def shares_noise_with_teacher(method: Method) -> bool:
    """Whether a method computes tokens from the same noise as the teacher's flow map, so that they can be compared."""
    return method == TEACHER_FLOW or isinstance(method, StudentAlone)


def num_parameters(methods: Methods, method: Method) -> int | None:
    """Parameters of the network that generates a method's tokens, without the tokenizer."""
    if isinstance(method, OnestepStar):
        return None
    # The paper counts the student alone for methods that use both networks.
    is_student = isinstance(method, (StudentAlone, PreTrained))
    network = methods.student.network if is_student else methods.teacher.transformer
    return sum(p.numel() for p in network.parameters())


def _row(method: str, scores: Row, **facts: Any) -> Row:
    return {"method": method, **dict.fromkeys(ROW_KEYS), **facts, **scores}
