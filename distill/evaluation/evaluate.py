"""Evaluates a student by a named protocol: writes evaluation.json and the image grids next to it.

Results of finished methods are saved, so the same command resumes an interrupted evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.config import EvaluationConfig
from distill.evaluation.feature_extractors.clip_score import ClipScore
from distill.evaluation.method_evaluation import Evaluation, evaluate_methods
from distill.evaluation.partial_results import FOLDER, PartialResults
from distill.evaluation.protocols import check_clip, check_evaluation, open_scorer
from distill.evaluation.reference_rows import open_reference_rows
from distill.evaluation.sample_grids import save_samples, shown_captions
from distill.evaluation.scorer import AT_REAL_IMAGES, SCORES
from distill.evaluation.teacher_images import TeacherImages
from distill.sampling.methods import open_methods
from distill.student.student import Student
from generate_pairs.compute.threads import computing_threads
from generate_pairs.teachers.checkpoints import LoadedTeacher
from shards.core.callbacks import Report, ShouldStop
from shards.core.errors import Stopped
from shards.dataset.manifest import Manifest
from shards.storage.files import commit_bytes, sha256_file
from shards.storage.paths import Location

SCHEMA_VERSION = 1
EVALUATION_FILE = "evaluation.json"


def evaluate(
    student_folder: Path,
    teacher: str | LoadedTeacher,
    pairs_root: Location,
    out: Path,
    config: EvaluationConfig,
    *,
    report: Report,
    should_stop: ShouldStop,
    name: str = EVALUATION_FILE,
) -> dict[str, Any]:
    """Score a student, its teacher and the baselines, with one thread; writes evaluation.json and samples/*.png.

    `teacher` made the pairs of the student, whose token frequencies define the baseline onestep*. `out` also contains the
    partial results of an interrupted evaluation. `report` is called with (done, total, the next method), where one method
    with one noise seed counts as one; `name` is evaluation-PROTOCOL.json for another protocol than the run's own.

    Raises:
        Refused: student, teacher, pairs and protocol do not belong together, or a file or package is missing.
        Stopped: `should_stop` returned True; finished methods are saved.
    """
    with computing_threads(1):
        student = Student.from_pretrained(student_folder, config.device)
        image_shape = student.tokenizer.image_shape
        check_evaluation(config, image_shape)
        check_clip(config, student.is_text_conditional)
        methods = open_methods(student, teacher, pairs_root, config.seed, config.num_images, config.device)
        scorer, teacher_images, tokenizer = open_scorer(config, image_shape), None, methods.teacher.tokenizer
        reference_rows = open_reference_rows(config, tokenizer)
        if scorer:
            teacher_images = TeacherImages.of_first_pairs(Manifest.open(pairs_root), tokenizer, config.num_images)
        clip = None if config.clip is None else ClipScore.load(config.clip, config.device)
        facts = {
            **config.result_settings,
            "device": config.device,
            **(scorer.facts if scorer else {}),
            **reference_rows.facts,
            **({"teacher_images": len(teacher_images)} if teacher_images else {}),
            **({"clip_sha256": clip.sha256} if clip else {}),
            "student_sha256": sha256_file(student_folder / "student.safetensors"),
            "noise_weight": student.noise_weight,
        }
        # Everything that the scores depend on: partial results of another identity are discarded.
        identity = {
            **facts,
            "export": sha256_file(student_folder / "config.json"),
            "fingerprint": student.fingerprint,
            "first_teacher_image": teacher_images.view.first if teacher_images else None,
            "scores": [*SCORES, AT_REAL_IMAGES],
            "torch": torch.__version__,
        }
        partial = PartialResults.open(out / FOLDER / Path(name).stem, identity)
        evaluation = Evaluation(config, methods, scorer, clip, partial, report, should_stop, reference_rows)
        rows, samples = evaluate_methods(with_teacher_reference(evaluation, teacher_images))
    captions = shown_captions(methods.student, config.num_images)
    result = {"schema_version": SCHEMA_VERSION, **facts, **captions, "rows": rows}
    save_samples(out / "samples", samples)
    commit_bytes(out / name, (json.dumps(result, indent=2) + "\n").encode())
    partial.clear()
    return result


def with_teacher_reference(evaluation: Evaluation, teacher_images: TeacherImages | None) -> Evaluation:
    """The evaluation whose scorer, if it has one, also computes the distance to the teacher's images, if there are any.

    Raises:
        Stopped: `should_stop` returned True.
    """
    scorer = evaluation.scorer
    if scorer is None or teacher_images is None:
        return evaluation

    def batches() -> Iterator[Tensor]:
        done = 0
        for images_BIHW in teacher_images.batches():
            if evaluation.should_stop():
                raise Stopped("in the middle of the teacher's images, and no method is done yet")
            note = f"{done:,} of the teacher's {len(teacher_images):,} images"
            evaluation.report(0, evaluation.total, note)
            done += len(images_BIHW)
            yield images_BIHW

    moments = evaluation.partial.moments(lambda: scorer.moments(batches()))
    return replace(evaluation, scorer=replace(scorer, teacher=moments))
