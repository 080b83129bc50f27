"""Evaluation on a small random teacher: which rows there are, and what their numbers have to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.config import DistillConfig, EvaluationConfig
from distill.evaluation import evaluate, make_all, open_methods
from distill.methods import count_tokens
from distill.student import Student
from distill.trainer import train
from shards.errors import Refused, Stopped
from shards.manifest import Manifest
from shards.reader import read_shard

NUM_PAIRS = 40


@pytest.fixture(scope="module")
def student_folder(pairs_root: Path, teacher_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the first 40 of 96 training pairs."""
    out = tmp_path_factory.mktemp("student")
    settings = {"num_steps": 2, "batch_size": 8, "embedding_weight": 0.1}
    config = DistillConfig.model_validate({"student": {"timesteps": [0, 2], "split": 2}, "train": settings})
    train(
        config,
        str(teacher_path),
        pairs_root,
        out,
        size=NUM_PAIRS,
        report=lambda *_: None,
        should_stop=lambda: False,
    )
    return out


@pytest.fixture(scope="module")
def result(
    student_folder: Path, pairs_root: Path, teacher_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, object]]:
    """The rows of evaluation.json by method, timed as quickly as can be."""
    out = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.evaluation.seconds_per_image", lambda makers, _: dict.fromkeys(makers, 0.25))
        threads = torch.get_num_threads()
        made = evaluate(
            student_folder,
            str(teacher_path),
            pairs_root,
            out,
            EvaluationConfig(num_images=100),
            report=lambda *_: None,
            should_stop=lambda: False,
        )
    assert torch.get_num_threads() == threads
    assert made == json.loads((out / "evaluation.json").read_text())
    assert made["num_images"] == 100
    assert (out / "samples" / "comparison.png").is_file()
    return {row["method"]: row for row in made["rows"]}


def test_every_method_has_its_steps(result: dict[str, dict[str, object]], family: str) -> None:
    steps = {"llamagen": 16, "var": 3}[family]
    skips = {"llamagen": (4, 8), "var": (1, 2)}[family]
    assert {method: row["num_steps"] for method, row in result.items()} == {
        "real": None,
        "reconstruction": None,
        "teacher": steps,
        "teacher-flow": steps,
        "student-1": 1,
        "student-2": 2,
        "onestep*": 1,
        f"skip-{skips[0]}": steps - skips[0],
        f"skip-{skips[1]}": steps - skips[1],
    }


def test_rows_say_what_fills_the_skipped_steps(result: dict[str, dict[str, object]], family: str) -> None:
    fill = {"llamagen": "marginals", "var": "nothing"}[family]
    assert {row["fill"] for method, row in result.items() if method.startswith("skip-")} == {fill}
    assert {row["fill"] for method, row in result.items() if not method.startswith("skip-")} == {None}


def test_tokens_are_matched_where_there_is_noise_to_follow(result: dict[str, dict[str, object]]) -> None:
    followed = {method for method, row in result.items() if row["token_match"] is not None}
    assert followed == {"teacher-flow", "student-1", "student-2"}
    assert result["teacher-flow"]["token_match"] == 1.0
    assert 0 < result["student-1"]["token_match"] < 1


def test_scores_are_of_the_real_digits(result: dict[str, dict[str, object]]) -> None:
    for row in result.values():
        assert 0 <= row["precision"] <= 1
        assert 0 <= row["recall"] <= 1
        assert 1 <= row["inception_score"] <= 10
    assert result["real"]["frechet_distance"] < 1 < result["teacher"]["frechet_distance"]
    assert result["real"]["class_accuracy"] > 0.95


def test_seconds_are_given_where_a_method_really_takes_them(result: dict[str, dict[str, object]]) -> None:
    quarter = {"1": 0.25, "64": 0.25}
    for method, row in result.items():
        untimed = method in ("real", "reconstruction") or method.startswith("skip-")
        assert row["seconds_per_image"] == (None if untimed else quarter)


def test_frequencies_are_those_of_the_pairs_that_the_student_saw(
    student_folder: Path, pairs_root: Path, teacher_path: Path
) -> None:
    manifest = Manifest.open(pairs_root)
    methods = open_methods(Student.from_pretrained(student_folder), str(teacher_path), pairs_root, seed=0)
    shards = [read_shard(pairs_root, manifest.spec, row) for row in manifest.rows]
    seen = [
        (label, tokens)
        for shard in shards
        for index, label, tokens in zip(shard.index_B, shard.label_B, shard.tokens_BL, strict=True)
        if manifest.spec.num_heldout <= index < manifest.spec.num_heldout + NUM_PAIRS
    ]
    assert len(seen) == NUM_PAIRS
    fours = [tokens for label, tokens in seen if label == 4]
    for position in range(manifest.spec.num_tokens):
        shares = torch.bincount(torch.tensor([int(t[position]) for t in fours]), minlength=24) / len(fours)
        torch.testing.assert_close(methods.frequencies_KLV[4, position], shares)
    assert not torch.equal(methods.frequencies_KLV, count_tokens(pairs_root, manifest.view()))


def test_the_same_images_are_made_again(student_folder: Path, pairs_root: Path, teacher_path: Path) -> None:
    student = Student.from_pretrained(student_folder)
    methods = open_methods(student, str(teacher_path), pairs_root, seed=0)
    labels = torch.arange(12) % 10
    for method in methods.names:
        once, again = make_all(methods, method, labels), make_all(methods, method, labels)
        assert torch.equal(once[0], again[0]), method
        assert once[0].shape == (12, 1, 8, 8)
        assert once[0].min() >= 0
        assert once[0].max() <= 1


def test_the_teacher_computes_in_the_pairs_own_arithmetic(
    student_folder: Path, pairs_root: Path, teacher_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lineage = Manifest.open(pairs_root).spec.lineage
    opened = Manifest.open

    def in_bfloat16(root: Path) -> Manifest:
        manifest = opened(root)
        manifest.spec.lineage["teacher"]["dtype"] = "bfloat16"
        return manifest

    assert lineage["teacher"]["dtype"] == "float32"
    student = Student.from_pretrained(student_folder)
    student.fingerprint = in_bfloat16(pairs_root).spec.fingerprint
    monkeypatch.setattr("distill.evaluation.Manifest.open", in_bfloat16)
    monkeypatch.setattr("distill.evaluation.count_tokens", lambda *_: torch.ones(10, 1, 24))
    methods = open_methods(student, str(teacher_path), pairs_root, seed=0)
    assert {p.dtype for p in methods.teacher.transformer.parameters()} == {torch.bfloat16}
    assert methods.make("teacher-flow", 0, torch.tensor([1, 2])).images_BIHW.dtype == torch.float32


def test_asked_to_stop_it_keeps_nothing(
    student_folder: Path, pairs_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    config = EvaluationConfig(num_images=100)
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Stopped, match="begins again"),
    ):
        patch.setattr("distill.evaluation.time_methods", lambda _: {"decode": {}})
        evaluate(
            student_folder,
            str(teacher_path),
            pairs_root,
            tmp_path,
            config,
            report=lambda *_: None,
            should_stop=lambda: True,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_student_of_other_pairs_is_refused(
    student_folder: Path, pairs_root: Path, teacher_path: Path
) -> None:
    student = Student.from_pretrained(student_folder)
    student.fingerprint = "0" * 64
    with pytest.raises(Refused, match="the student learned from pairs 000000000000, but"):
        open_methods(student, str(teacher_path), pairs_root, seed=0)
