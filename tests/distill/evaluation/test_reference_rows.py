"""The rows of real images: what they show, what they are compared with, and why one is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.config import EvaluationConfig
from distill.evaluation.feature_extractors import inception
from distill.evaluation.image_metrics import Manifold, Moments, frechet_distance, precision_recall
from distill.evaluation.method_evaluation import Evaluation, evaluate_methods
from distill.evaluation.partial_results import PartialResults
from distill.evaluation.protocols import open_scorer
from distill.evaluation.reference_images import halves, held_out_indices
from distill.evaluation.reference_rows import open_reference_rows, reconstructed
from distill.evaluation.scorer import Scorer
from distill.images import save_images
from generate_pairs.digits.dataset import load_digits_split
from generate_pairs.teachers.base import Tokenizer, to_unit_range
from generate_pairs.teachers.checkpoints import load_teacher
from shards.core.errors import Refused, Stopped

NUM_REFERENCES = 261
DIM = 5

HELD_OUT, OTHERS = halves(261)


class Columns:
    """Means of five columns of pixels, and no classes."""

    dim = DIM
    knows_labels = False

    def __call__(self, images_BIHW: Tensor) -> Tensor:
        return images_BIHW.mean(dim=(1, 2))[:, :DIM]

    def probabilities(self, features_BF: Tensor) -> Tensor | None:
        return None


class Levels(Tokenizer):
    """A tokenizer of images of 3 x 8 x 8 whose tokens are the nearest of evenly spaced values; 256 lose nothing."""

    image_shape = (3, 8, 8)

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.largest_batch = 0

    @property
    def codebook_VC(self) -> Tensor:
        return torch.linspace(-1, 1, self.count).unsqueeze(1)

    def encode(self, images_BIHW: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(images_BIHW))
        return ((images_BIHW + 1) / 2 * (self.count - 1)).round().long().flatten(1)

    def decode(self, embeddings_BLC: Tensor) -> Tensor:
        return embeddings_BLC.reshape(-1, *self.image_shape)


@pytest.fixture(autouse=True)
def no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.evaluation.method_evaluation.time_methods", lambda *_: {"decode": {}})


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns replace the Inception network."""
    monkeypatch.setattr(inception, "DIM", DIM)
    monkeypatch.setattr(inception, "load_inception", lambda *_: Columns())
    monkeypatch.setattr(inception, "refuse_missing_package", lambda: None)
    monkeypatch.setattr(inception, "local_weights", lambda weights: None)


@pytest.fixture
def pixels() -> np.ndarray:
    """Images of 8 bits (N, 8, 8, 3)."""
    return np.random.default_rng(0).integers(0, 256, (NUM_REFERENCES, 8, 8, 3), dtype=np.uint8)


def batch_config(path: Path, pixels: np.ndarray, num_images: int = 1_000, **moments: np.ndarray) -> EvaluationConfig:
    """The protocol adm with a reference batch of these images."""
    np.savez(path / "batch.npz", arr_0=pixels, **moments)
    return EvaluationConfig(protocol="adm", reference=str(path / "batch.npz"), num_images=num_images)


def features_of(pixels: np.ndarray) -> Tensor:
    return Columns()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0)


def real_rows(config: EvaluationConfig, tokenizer: Tokenizer, folder: Path) -> tuple[dict[str, dict], dict[str, Any]]:
    """The rows of real images by name, and what evaluation.json records of them."""
    methods = SimpleNamespace(teacher=SimpleNamespace(tokenizer=tokenizer), compared=())
    scorer, rows = open_scorer(config, tokenizer.image_shape), open_reference_rows(config, tokenizer)
    partial = PartialResults(folder / "partial")
    found, _ = evaluate_methods(
        Evaluation(config, methods, scorer, None, partial, lambda *_: None, lambda: False, rows)  # type: ignore[arg-type]
    )
    return {row["method"]: row for row in found}, rows.facts


def scores_by_hand(real: Moments, real_half: Tensor, shown: Tensor) -> dict[str, float]:
    """Expected scores of images with the features `shown`."""
    manifolds = (Manifold.of(features, by_product=True) for features in (real_half, shown))
    distance = frechet_distance(real, Moments.of(shown))
    return {"frechet_distance": pytest.approx(distance, rel=1e-6), **precision_recall(*manifolds)._asdict()}


@pytest.mark.quick
@pytest.mark.usefixtures("columns")
def test_one_half_of_the_reference_is_compared_with_the_other(pixels: np.ndarray, tmp_path: Path) -> None:
    rows, facts = real_rows(batch_config(tmp_path, pixels), Levels(256), tmp_path)
    others, held_out = features_of(pixels[OTHERS]), features_of(pixels[HELD_OUT])
    assert rows["real"].items() >= scores_by_hand(Moments.of(others), others, held_out).items()
    assert rows["real"]["class_accuracy"] is None
    assert facts == {"real_images": 130, "real_against": "the other half of the batch's images (131)"}


@pytest.mark.quick
@pytest.mark.usefixtures("columns")
def test_the_moments_of_a_batch_replace_those_of_the_half(pixels: np.ndarray, tmp_path: Path) -> None:
    moments = Moments(np.full(DIM, 0.25), 0.5 * np.eye(DIM))
    config = batch_config(tmp_path, pixels, mu=moments.mean_F, sigma=moments.covariance_FF)
    rows, facts = real_rows(config, Levels(256), tmp_path)
    others, held_out = features_of(pixels[OTHERS]), features_of(pixels[HELD_OUT])
    assert rows["real"].items() >= scores_by_hand(moments, others, held_out).items()
    # Closed form of the distance between the file's isotropic Gaussian and the real images'.
    mean, covariance = held_out.double().mean(0).numpy(), np.cov(held_out.double().numpy().T)
    roots = np.sqrt(0.5 * np.linalg.eigvalsh(covariance)).sum()
    expected = ((mean - 0.25) ** 2).sum() + np.trace(covariance) + 0.5 * DIM - 2 * roots
    assert rows["real"]["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    assert facts["real_against"] == (
        "the batch's moments, in precision and recall against the other half of the batch's images (131)"
    )


@pytest.mark.quick
@pytest.mark.usefixtures("columns")
def test_no_real_image_is_compared_with_itself(pixels: np.ndarray, tmp_path: Path) -> None:
    """Images of one half are bright, others dark: an image in both halves would be near itself."""
    pixels = pixels // 4
    pixels[HELD_OUT] += 192
    rows, _ = real_rows(batch_config(tmp_path, pixels), Levels(256), tmp_path)
    for row in rows.values():
        assert (row["precision"], row["recall"]) == (0, 0)
        assert row["frechet_distance"] > DIM * 0.7**2


@pytest.mark.quick
@pytest.mark.usefixtures("columns")
def test_there_are_at_most_as_many_real_images_as_images_of_a_method(pixels: np.ndarray, tmp_path: Path) -> None:
    config = batch_config(tmp_path, pixels, num_images=100)
    rows, facts = real_rows(config, Levels(256), tmp_path)
    chosen = held_out_indices(261, 100)
    others = features_of(pixels[OTHERS])
    assert rows["real"].items() >= scores_by_hand(Moments.of(others), others, features_of(pixels[chosen])).items()
    assert facts["real_images"] == 100


@pytest.mark.quick
@pytest.mark.usefixtures("columns")
def test_a_reconstruction_differs_from_the_real_images_only_by_the_tokenizer(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.student.sampler.BATCH_PIXELS", 7 * 64)
    config, lossless, lossy = batch_config(tmp_path, pixels), Levels(256), Levels(2)
    rows, _ = real_rows(config, lossless, tmp_path / "lossless")
    assert list(rows) == ["real", "reconstruction"]
    assert {**rows["reconstruction"], "method": "real"} == rows["real"]
    assert lossless.largest_batch == 7
    again, _ = real_rows(config, lossy, tmp_path / "lossy")
    assert again["real"] == rows["real"]
    others, black_or_white = features_of(pixels[OTHERS]), np.where(pixels[HELD_OUT] > 127, 255, 0).astype(np.uint8)
    expected = scores_by_hand(Moments.of(others), others, features_of(black_or_white))
    assert again["reconstruction"].items() >= expected.items()
    assert expected["frechet_distance"] != rows["real"]["frechet_distance"]


@pytest.mark.quick
@pytest.mark.parametrize("protocol", ["digits", "folder"])
def test_a_tokenizer_without_encoder_has_no_reconstruction(protocol: str, tmp_path: Path) -> None:
    save_images(tmp_path / "real", to_unit_range(load_digits_split().train_images[:110]))
    reference = {"reference": str(tmp_path / "real"), "features": "digits"} if protocol == "folder" else {}
    config, tokenizer = EvaluationConfig(protocol=protocol, **reference), load_teacher("digits").teacher.tokenizer
    assert list(open_reference_rows(config, tokenizer).images) == ["real", "reconstruction"]
    assert "missing_rows" not in open_reference_rows(config, tokenizer).facts
    bare = open_reference_rows(config, tokenizer.decoder_only())
    assert list(bare.images) == ["real"]
    assert bare.facts["missing_rows"] == {"reconstruction": "the teacher's tokenizer has no encoder"}


@pytest.mark.quick
@pytest.mark.usefixtures("columns")
def test_reasons_for_missing_rows_are_recorded(pixels: np.ndarray, tmp_path: Path) -> None:
    digits = load_teacher("digits").teacher.tokenizer
    for protocol, reason in {
        "dd": "the reference of the protocol dd contains moments, but no images",
        "samples": "the protocol samples has no real images",
    }.items():
        rows = open_reference_rows(EvaluationConfig(protocol=protocol, reference="unread", num_images=100), digits)
        assert rows.images == {}
        assert rows.facts == {"missing_rows": {"real": reason, "reconstruction": reason}}
    grey = open_reference_rows(batch_config(tmp_path, pixels), digits)
    reason = "the batch's images have 3 channels, and this teacher's have 1"
    assert (list(grey.images), grey.facts["missing_rows"]) == (["real"], {"reconstruction": reason})


@pytest.mark.quick
def test_unseen_digits_are_scored_as_they_are_and_reconstructed(tmp_path: Path) -> None:
    rows, facts = real_rows(EvaluationConfig(), load_teacher("digits").teacher.tokenizer, tmp_path)
    split, tokenizer = load_digits_split(), load_teacher("digits").teacher.tokenizer
    scorer = Scorer.digits(to_unit_range(split.train_images))
    with torch.inference_mode():
        decoded = to_unit_range(tokenizer.decode(tokenizer.embed(tokenizer.encode(split.test_images))))
    assert torch.equal(reconstructed(tokenizer, to_unit_range(split.test_images)), decoded)
    assert rows["real"].items() >= scorer.scores(to_unit_range(split.test_images), split.test_labels).items()
    assert rows["reconstruction"].items() >= scorer.scores(decoded, split.test_labels).items()
    assert facts == {"real_images": 500, "real_against": "the 1,297 training digits"}


@pytest.mark.quick
def test_the_distance_of_the_first_images_is_that_of_their_features() -> None:
    split = load_digits_split()
    scorer = Scorer.digits(to_unit_range(split.train_images))
    features = scorer.new_accumulator().add(to_unit_range(split.test_images))
    few = scorer.scores(to_unit_range(split.test_images[:70]), None)
    assert scorer.frechet_distance_of_first(features, 70) == pytest.approx(few["frechet_distance"], rel=1e-9)


@pytest.mark.parametrize(
    "family", ["llamagen", pytest.param("var", marks=pytest.mark.slow)], indirect=True, scope="session"
)
def test_a_stopped_evaluation_resumes_with_the_finished_rows(
    evaluate_student: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    save_images(tmp_path / "real", to_unit_range(load_digits_split().train_images[:150]))
    config = EvaluationConfig(protocol="folder", reference=str(tmp_path / "real"), features="digits", num_images=100)
    reports: list[tuple[int, int, str]] = []

    def evaluate(out: str, last_note: str | None = None) -> dict[str, Any]:
        """Evaluate 12 images at a time; stop after the report of this note."""
        reports.clear()
        return evaluate_student(
            tmp_path / out,
            config,
            should_stop=lambda: bool(reports) and reports[-1][2] == last_note,
            report=lambda *report: reports.append(report),
            batch_size=12,
        )

    with pytest.raises(Stopped, match="in the middle of the row reconstruction, and no method is done yet"):
        evaluate("out", "reconstruction, 12 of 75 images")
    assert [report for report in reports if "of the teacher's" not in report[2]] == [
        *((0, 11, f"real, {done} of 75 images") for done in range(0, 75, 12)),
        *((1, 11, f"reconstruction, {done} of 75 images") for done in (0, 12)),
    ]
    saved = tmp_path / "out" / ".evaluation" / "evaluation" / "real.json"
    complete = saved.read_bytes()
    saved.write_bytes(complete[:20])
    with pytest.raises(Refused, match=r"real\.json is damaged: delete .*evaluation to start this evaluation again"):
        evaluate("out")
    saved.write_bytes(complete)
    resumed = evaluate("out")
    assert [note for _, _, note in reports[:7]] == [f"reconstruction, {done} of 75 images" for done in range(0, 75, 12)]
    assert resumed == evaluate("whole")
    first, second = ((tmp_path / out / "evaluation.json").read_bytes() for out in ("out", "whole"))
    assert first == second
    assert json.loads(first)["real_against"] == "the other half of the folder's images (75)"
