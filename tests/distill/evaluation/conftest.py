"""A trained student and its evaluation, for all tests of evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.config import DistillConfig, EvaluationConfig
from distill.evaluation.evaluate import evaluate
from distill.sampling.methods import Methods, open_methods
from distill.student.student import Student
from distill.training.trainer import train

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def student_folder(pairs_root: Path, teacher_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student trained on the first 40 of 96 training pairs."""
    out = tmp_path_factory.mktemp("student")
    settings = {"num_steps": 2, "batch_size": 8, "embedding_weight": 0.1}
    config = DistillConfig.model_validate({"student": {"timesteps": [0, 2], "split": 2}, "train": settings})
    quiet = {"report": lambda *_: None, "should_stop": lambda: False}
    train(config, str(teacher_path), pairs_root, out, size=40, **quiet)
    return out


@pytest.fixture
def student(student_folder: Path) -> Student:
    return Student.from_pretrained(student_folder)


@pytest.fixture
def methods(student: Student, pairs_root: Path, teacher_path: Path) -> Methods:
    return open_methods(student, str(teacher_path), pairs_root, seed=0, num_images=100)


@pytest.fixture(scope="module")
def evaluate_student(student_folder: Path, pairs_root: Path, teacher_path: Path) -> Evaluate:
    """Evaluates the student, without timing, and returns the content of the file."""

    def run(
        out: Path,
        config: EvaluationConfig,
        name: str = "evaluation.json",
        report: Callable[..., None] = lambda *_: None,
        should_stop: Callable[[], bool] = lambda: False,
        seconds: float = 0.25,
        batch_size: int = 1_000,
    ) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "distill.evaluation.timing.seconds_per_image", lambda functions, _: dict.fromkeys(functions, seconds)
            )
            patch.setattr("distill.student.sampler.BATCH_PIXELS", batch_size * 64)
            more = {"report": report, "should_stop": should_stop, "name": name}
            result = evaluate(student_folder, str(teacher_path), pairs_root, out, config, **more)
        assert result == json.loads((out / name).read_text())
        return result

    return run
