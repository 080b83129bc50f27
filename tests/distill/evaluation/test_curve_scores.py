"""Scores during training: they equal those of the evaluation, and computing them does not change the training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.config import DistillConfig, EvaluationConfig
from distill.evaluation.curve_scores import StudentScores
from distill.evaluation.method_evaluation import Evaluation, evaluate_methods
from distill.evaluation.partial_results import PartialResults
from distill.evaluation.protocols import open_scorer
from distill.sampling.methods import open_methods
from distill.student.student import Student
from distill.training.distributed import World
from distill.training.preflight import checked_manifest
from distill.training.state import Training
from distill.training.trainer import EvalCallback, train

CONFIG = DistillConfig.model_validate(
    {
        "student": {"timesteps": [0, 2], "split": 3},
        "train": {
            "num_steps": 10,
            "batch_size": 16,
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "checkpoint_interval": 4,
            "embedding_weight": 0.1,
        },
    }
)


def trained(out: Path, pairs_root: Path, teacher_path: Path, callback: EvalCallback | None) -> dict[str, bytes]:
    quiet = {"report": lambda *_: None, "should_stop": lambda: False}
    train(CONFIG, str(teacher_path), pairs_root, out, size=96, eval_callback=callback, **quiet)
    return {name: (out / name).read_bytes() for name in ("student.safetensors", "config.json")}


@pytest.mark.parametrize(
    "family", [pytest.param("llamagen", marks=pytest.mark.slow), "var"], indirect=True, scope="session"
)
def test_a_callback_changes_nothing(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, torch.Tensor]] = []
    scores = StudentScores(EvaluationConfig(num_images=100))

    def callback(training: Training) -> None:
        training.token_metrics(training.heldout_batch)
        with training.averaged_weights() as student:
            scores(student)
        calls.append((training.step, training.averages[0].clone()))

    with_callback = trained(tmp_path / "with", pairs_root, teacher_path, EvalCallback(3, callback))
    assert [step for step, _ in calls] == [3, 6, 9, 10]
    assert with_callback == trained(tmp_path / "without", pairs_root, teacher_path, None)
    marks = {path.stem for path in (tmp_path / "with" / "checkpoints").glob("*.json")}
    assert marks == {"step-000009", "step-000010"}
    exported = Student.from_pretrained(tmp_path / "with")
    assert torch.equal(next(exported.network.parameters()), calls[-1][1])


def test_a_failed_callback_runs_again(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    """A checkpoint is saved after the callback of its step, so a resumed training misses none."""
    calls: list[tuple[int, torch.Tensor]] = []

    def callback(training: Training) -> None:
        calls.append((training.step, training.averages[0].clone()))
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(tmp_path / "lost", pairs_root, teacher_path, EvalCallback(3, callback))
    again = trained(tmp_path / "lost", pairs_root, teacher_path, EvalCallback(3, callback))
    assert [step for step, _ in calls] == [3, 6, 6, 9, 10]
    assert torch.equal(calls[1][1], calls[2][1])
    assert again == trained(tmp_path / "whole", pairs_root, teacher_path, None)


def test_averaged_weights_are_used_temporarily(pairs_root: Path, teacher_path: Path) -> None:
    training = Training(CONFIG, str(teacher_path), checked_manifest(CONFIG, pairs_root), 96, World())
    for _ in range(3):
        training.update()
    before = [parameter.detach().clone() for parameter in training.parameters]
    assert not all(map(torch.equal, before, training.averages))

    def inside() -> None:
        with training.averaged_weights() as student:
            assert not student.network.training
            assert all(map(torch.equal, student.network.parameters(), training.averages))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        inside()
    assert all(map(torch.equal, training.parameters, before))
    assert training.student.network.training


@pytest.mark.parametrize(
    "family", ["llamagen", pytest.param("var", marks=pytest.mark.slow)], indirect=True, scope="session"
)
def test_scores_equal_those_of_the_evaluation(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    trained(tmp_path, pairs_root, teacher_path, None)
    student, config = Student.from_pretrained(tmp_path), EvaluationConfig(num_images=300, seed=2)
    methods = open_methods(student, str(teacher_path), pairs_root, config.seed, config.num_images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "distill.evaluation.timing.seconds_per_image",
            lambda functions, _: dict.fromkeys(functions, 0.25),
        )
        scorer = open_scorer(config, (1, 8, 8))
        evaluation = Evaluation(
            config, methods, scorer, None, PartialResults(tmp_path / "partial"), lambda *_: None, lambda: False
        )
        rows, _ = evaluate_methods(evaluation)
    expected = {row["method"]: row for row in rows}
    scores = StudentScores(config)
    assert scores.protocol == "digits, 300 images, seed 2"
    found = scores(student)
    assert list(found) == ["student-1", "student-2"]
    for method, values in found.items():
        assert values == pytest.approx({name: expected[method][name] for name in values}, rel=1e-5)


def test_the_number_of_scored_images_is_a_setting(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    trained(tmp_path, pairs_root, teacher_path, None)
    student = Student.from_pretrained(tmp_path)
    few = StudentScores(EvaluationConfig(num_images=300, curve_images=120))
    assert few.protocol == "digits, 120 images, seed 0"
    assert few(student) == StudentScores(EvaluationConfig(num_images=120))(student)


def test_the_protocol_samples_has_no_score(teacher_path: Path) -> None:
    assert StudentScores(EvaluationConfig(protocol="samples", num_images=2))(None) == {}  # type: ignore[arg-type]


def test_token_metrics_use_averaged_weights_and_do_not_depend_on_the_batch_size(
    pairs_root: Path, teacher_path: Path, monkeypatch
) -> None:
    training = Training(CONFIG, str(teacher_path), checked_manifest(CONFIG, pairs_root), 96, World())
    for _ in range(3):
        training.update()
    whole = training.token_metrics(training.heldout_batch)
    per_pair = training.layout.num_tokens * len(training.codebook_VC)
    monkeypatch.setattr("distill.training.state.MAX_LOGITS", 5 * per_pair)
    assert training.token_metrics(training.heldout_batch) == pytest.approx(whole, rel=1e-6)
    student, batch = training.student, training.heldout_batch
    student.network.eval()
    with torch.no_grad():
        for parameter, average in zip(training.parameters, training.averages, strict=True):
            parameter.copy_(average)
        logits_BLV, _ = student(batch.noise_BLC.float(), torch.zeros_like(batch.label_B), batch.label_B)
    expected = torch.nn.functional.cross_entropy(logits_BLV.double().flatten(0, 1), batch.tokens_BL.flatten())
    assert whole["token_loss"] == pytest.approx(expected.item(), rel=1e-6)
    matched = (logits_BLV.argmax(-1) == batch.tokens_BL).double().mean()
    assert whole["token_match"] == pytest.approx(matched.item(), rel=1e-12)
