"""A student that is looked at on its way: the evaluation's own numbers, and no trace of the look."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.config import DistillConfig, EvaluationConfig
from distill.evaluation.curve_scores import StudentScores
from distill.evaluation.evaluate import evaluate_methods
from distill.evaluation.partial_results import PartialResults
from distill.evaluation.protocols import open_scorer
from distill.sampling.methods import open_methods
from distill.student.student import Student
from distill.training.distributed import World
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


def trained(out: Path, pairs_root: Path, teacher_path: Path, watch: EvalCallback | None) -> dict[str, bytes]:
    train(
        CONFIG,
        str(teacher_path),
        pairs_root,
        out,
        size=96,
        report=lambda *_: None,
        should_stop=lambda: False,
        eval_callback=watch,
    )
    return {name: (out / name).read_bytes() for name in ("student.safetensors", "config.json")}


def test_a_look_changes_nothing(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, torch.Tensor]] = []
    scores = StudentScores(EvaluationConfig(num_images=100))

    def look(training: Training) -> None:
        training.token_metrics(training.heldout_batch)
        with training.averaged() as student:
            scores(student)
        seen.append((training.step, training.averages[0].clone()))

    watched = trained(tmp_path / "watched", pairs_root, teacher_path, EvalCallback(3, look))
    assert [step for step, _ in seen] == [3, 6, 9, 10]
    assert watched == trained(tmp_path / "alone", pairs_root, teacher_path, None)
    marks = {path.stem for path in (tmp_path / "watched" / "checkpoints").glob("*.json")}
    assert marks == {"step-000009", "step-000010"}
    exported = Student.from_pretrained(tmp_path / "watched")
    assert torch.equal(next(exported.network.parameters()), seen[-1][1])


def test_a_look_that_was_lost_is_taken_again(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    """A checkpoint follows its look: a training that goes on has missed none."""
    seen: list[tuple[int, torch.Tensor]] = []

    def look(training: Training) -> None:
        seen.append((training.step, training.averages[0].clone()))
        if len(seen) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(tmp_path / "lost", pairs_root, teacher_path, EvalCallback(3, look))
    again = trained(tmp_path / "lost", pairs_root, teacher_path, EvalCallback(3, look))
    assert [step for step, _ in seen] == [3, 6, 6, 9, 10]
    assert torch.equal(seen[1][1], seen[2][1])
    assert again == trained(tmp_path / "whole", pairs_root, teacher_path, None)


def test_averages_are_lent_and_given_back(pairs_root: Path, teacher_path: Path) -> None:
    training = Training(CONFIG, str(teacher_path), pairs_root, 96, World())
    for _ in range(3):
        training.update()
    before = [parameter.detach().clone() for parameter in training.parameters]
    assert not all(map(torch.equal, before, training.averages))

    def inside() -> None:
        with training.averaged() as student:
            assert not student.network.training
            assert all(map(torch.equal, student.network.parameters(), training.averages))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        inside()
    assert all(map(torch.equal, training.parameters, before))
    assert training.student.network.training


def test_scores_are_those_of_the_evaluation(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    trained(tmp_path, pairs_root, teacher_path, None)
    student, config = Student.from_pretrained(tmp_path), EvaluationConfig(num_images=300, seed=2)
    methods = open_methods(student, str(teacher_path), pairs_root, config.seed, config.num_images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "distill.evaluation.timing.seconds_per_image", lambda makers, _: dict.fromkeys(makers, 0.25)
        )
        scorer = open_scorer(config, (1, 8, 8))
        rows, _ = evaluate_methods(
            methods, scorer, None, config, PartialResults(), lambda *_: None, lambda: False
        )
    judged = {row["method"]: row for row in rows}
    scores = StudentScores(config)
    assert scores.protocol == "digits, 300 images, seed 2"
    found = scores(student)
    assert list(found) == ["student-1", "student-2"]
    for method, values in found.items():
        assert values == pytest.approx({name: judged[method][name] for name in values}, rel=1e-5)


def test_a_look_scores_as_many_images_as_are_asked_for(
    pairs_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    trained(tmp_path, pairs_root, teacher_path, None)
    student = Student.from_pretrained(tmp_path)
    few = StudentScores(EvaluationConfig(num_images=300, curve_images=120))
    assert few.protocol == "digits, 120 images, seed 0"
    assert few(student) == StudentScores(EvaluationConfig(num_images=120))(student)


def test_without_real_images_there_is_no_score(teacher_path: Path) -> None:
    assert StudentScores(EvaluationConfig(protocol="samples", num_images=2))(None) == {}  # type: ignore[arg-type]


def test_token_metrics_are_those_of_the_averages_and_the_same_in_pieces(
    pairs_root: Path, teacher_path: Path, monkeypatch
) -> None:
    training = Training(CONFIG, str(teacher_path), pairs_root, 96, World())
    for _ in range(3):
        training.update()
    whole = training.token_metrics(training.heldout_batch)
    per_pair = training.layout.num_tokens * len(training.codebook_VC)
    monkeypatch.setattr("distill.training.state.MOST_LOGITS", 5 * per_pair)
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
