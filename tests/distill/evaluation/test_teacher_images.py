"""The teacher's images: which pairs they show, how many there are, and the distances to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.config import EvaluationConfig
from distill.evaluation.feature_extractors.base import extract
from distill.evaluation.feature_extractors.digits_classifier import load_digits_classifier
from distill.evaluation.image_metrics import Moments, frechet_distance
from distill.evaluation.partial_results import MOMENTS_FILE, PartialResults
from distill.evaluation.teacher_images import TeacherImages
from generate_pairs.digits.dataset import load_digits_split
from generate_pairs.teachers.base import Tokenizer, to_unit_range
from generate_pairs.teachers.checkpoints import load_teacher
from shards.core.errors import Refused, Stopped
from shards.dataset.manifest import Manifest
from shards.dataset.reader import read_shard, read_view

TRAINED_ON = 40


@pytest.fixture
def tokenizer(teacher_path: Path) -> Tokenizer:
    return load_teacher(str(teacher_path)).teacher.tokenizer


@pytest.fixture
def training_tokens(pairs_root: Path) -> torch.Tensor:
    """Tokens of all training pairs, in order, read shard by shard."""
    manifest = Manifest.open(pairs_root)
    shards = [read_shard(pairs_root, manifest.spec, row) for row in manifest.rows]
    tokens = np.concatenate([shard.tokens_BL for shard in shards]).astype(np.int64)
    return torch.from_numpy(tokens[manifest.spec.num_heldout :])


@pytest.fixture
def evaluate_again(evaluate_student: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Evaluates with 100 images, 12 at a time, and returns the content of evaluation.json."""
    return partial(evaluate_student, config=EvaluationConfig(num_images=100), batch_size=12)


def test_teacher_images_are_the_decoded_first_training_pairs(
    pairs_root: Path, tokenizer: Tokenizer, training_tokens: torch.Tensor
) -> None:
    teacher_images = TeacherImages.of_first_pairs(Manifest.open(pairs_root), tokenizer, 6)
    assert teacher_images is not None
    assert len(teacher_images) == 60 < len(training_tokens)
    with torch.inference_mode():
        expected = to_unit_range(tokenizer.decode(tokenizer.embed(training_tokens[:60])))
    torch.testing.assert_close(torch.cat(list(teacher_images.batches())), expected, rtol=0, atol=1e-5)
    tokens_BL = np.concatenate([pairs.tokens_BL for pairs in read_view(pairs_root, teacher_images.view)])
    assert tokens_BL.tolist() == training_tokens[:60].tolist()


def test_their_number_is_limited_by_the_pairs_and_by_a_maximum(
    pairs_root: Path, tokenizer: Tokenizer, training_tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.open(pairs_root)

    def count(num_images: int) -> int | None:
        images = TeacherImages.of_first_pairs(manifest, tokenizer, num_images)
        return None if images is None else len(images)

    assert count(1_000) == len(training_tokens)
    monkeypatch.setattr("distill.evaluation.teacher_images.MAX_IMAGES", 50)
    assert [count(4), count(5), count(6)] == [40, 50, 50]
    monkeypatch.setattr(Manifest, "num_available", 1)
    assert count(6) is None


@pytest.mark.parametrize(
    "family", [pytest.param("llamagen", marks=pytest.mark.slow), "var"], indirect=True, scope="session"
)
def test_every_method_is_compared_with_them(
    evaluate_again: Callable[..., dict[str, Any]],
    tmp_path: Path,
    tokenizer: Tokenizer,
    training_tokens: torch.Tensor,
) -> None:
    """All pairs are used, not only the student's training pairs."""
    result = evaluate_again(tmp_path)
    assert result["teacher_images"] == len(training_tokens) > TRAINED_ON
    classifier = load_digits_classifier()
    with torch.inference_mode():
        images = to_unit_range(tokenizer.decode(tokenizer.embed(training_tokens)))
    theirs = Moments.of(extract(classifier, images))
    rows = {row["method"]: row for row in result["rows"]}
    real = Moments.of(extract(classifier, to_unit_range(load_digits_split().test_images)))
    assert rows["real"]["teacher_distance"] == pytest.approx(frechet_distance(theirs, real), rel=1e-5)
    assert rows["teacher"]["teacher_distance"] < rows["teacher"]["frechet_distance"]
    assert all(row["teacher_distance"] > 0 for row in rows.values())


@pytest.mark.parametrize(
    "family", ["llamagen", pytest.param("var", marks=pytest.mark.slow)], indirect=True, scope="session"
)
def test_their_moments_are_saved_when_an_evaluation_is_stopped(
    evaluate_again: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, reports = itertools.count(), list[tuple[int, int, str]]()
    with pytest.raises(Stopped, match="in the middle of the teacher's images"):
        evaluate_again(
            tmp_path / "out", should_stop=lambda: next(calls) == 2, report=lambda *report: reports.append(report)
        )
    # Two rows of real images and nine methods.
    assert reports == [(0, 11, f"{done} of the teacher's 96 images") for done in (0, 12)]
    saved = tmp_path / "out" / ".evaluation" / "evaluation" / MOMENTS_FILE
    assert not saved.exists()
    calls = itertools.count()
    with pytest.raises(Stopped, match=r"0 of \d+ methods are done and kept"):
        evaluate_again(tmp_path / "out", should_stop=lambda: next(calls) == 14)
    assert saved.is_file()
    whole = evaluate_again(tmp_path / "whole")
    monkeypatch.setattr(TeacherImages, "batches", lambda self: pytest.fail("the images were decoded again"))
    assert evaluate_again(tmp_path / "out") == whole


def test_moments_are_restored_exactly_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    results = PartialResults.open(tmp_path, {"one": 1})
    measured = Moments.of(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)))
    again = [results.moments(lambda: measured), results.moments(lambda: pytest.fail("measured twice"))]
    for moments in again:
        assert np.array_equal(moments.mean_F, measured.mean_F)
        assert np.array_equal(moments.covariance_FF, measured.covariance_FF)
    file = tmp_path / MOMENTS_FILE
    for damaged in (file.read_bytes()[:300], b"", b"{}"):
        file.write_bytes(damaged)
        with pytest.raises(Refused, match=rf"teacher\.npz is damaged: delete {tmp_path} to start"):
            results.moments(lambda: measured)
