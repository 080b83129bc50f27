"""Evaluation with a small random teacher: its rows and their numbers."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from distill.config import EvaluationConfig
from distill.evaluation.feature_extractors import inception
from distill.evaluation.feature_extractors.base import extract
from distill.evaluation.feature_extractors.digits_classifier import load_digits_classifier
from distill.evaluation.image_metrics import Moments
from distill.evaluation.method_evaluation import Evaluation, evaluate_methods
from distill.evaluation.partial_results import PartialResults
from distill.evaluation.sample_grids import comparison_rows, save_samples
from distill.evaluation.scorer import AT_REAL_IMAGES, SCORES
from distill.images import save_images
from distill.sampling.method_spec import (
    ONESTEP_STAR,
    TEACHER,
    TEACHER_FLOW,
    Method,
    PreTrained,
    SkipN,
    StudentAlone,
)
from distill.sampling.methods import Methods, count_tokens, generate_batches, open_methods
from distill.student.sampler import max_batch_size
from distill.student.student import Student
from generate_pairs.digits.dataset import load_digits_split
from generate_pairs.teachers.base import to_unit_range
from shards.core.errors import Refused, Stopped
from shards.dataset.manifest import Manifest
from shards.dataset.reader import read_shard

NUM_PAIRS = 40
Rows = dict[str, dict[str, Any]]


def generate_all(
    methods: Methods, method: Method, labels: torch.Tensor, teacher_tokens: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and tokens of all labels."""
    batches = [batch for _, batch in generate_batches(methods, method, labels, teacher_tokens)]
    images = torch.cat([batch.images_BIHW for batch in batches])
    return images, torch.cat([batch.tokens_BL for batch in batches])


def evaluate_samples(methods: Methods, folder: Path) -> dict[Method, torch.Tensor]:
    """The shown images of an evaluation of 12 images without scores."""
    config = EvaluationConfig(protocol="samples", num_images=12)
    _, images = evaluate_methods(
        Evaluation(config, methods, None, None, PartialResults(folder), lambda *_: None, lambda: False)
    )
    return images


@pytest.fixture(scope="module")
def evaluated(evaluate_student: Callable[..., dict[str, Any]]) -> Callable[..., Rows]:
    """The rows of an evaluation by method."""

    def run(out: Path, config: EvaluationConfig, name: str = "evaluation.json") -> Rows:
        threads = torch.get_num_threads()
        result = evaluate_student(out, config, name)
        assert torch.get_num_threads() == threads
        assert (result["protocol"], result["num_images"]) == (config.protocol, config.num_images)
        assert (out / "samples" / "comparison.png").is_file()
        return {row["method"]: row for row in result["rows"]}

    return run


@pytest.fixture(scope="module")
def result(evaluated: Callable[..., Rows], tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of evaluation.json by method."""
    return evaluated(tmp_path_factory.mktemp("evaluated"), EvaluationConfig(num_images=100))


def test_every_method_has_its_number_of_steps(result: Rows, family: str) -> None:
    steps = {"llamagen": 16, "var": 3}[family]
    skips = {"llamagen": (4, 8), "var": (1, 2)}[family]
    assert {method: row["num_steps"] for method, row in result.items()} == {
        "real": None,
        "reconstruction": None,
        "teacher": steps,
        "teacher-flow": steps,
        "student-1": 1,
        "student-2": 2,
        "pre-trained-1-3": 3,
        "pre-trained-2-3": 3,
        "onestep*": 1,
        f"skip-{skips[0]}": steps - skips[0],
        f"skip-{skips[1]}": steps - skips[1],
    }


def test_rows_name_what_fills_the_skipped_steps(result: Rows, family: str) -> None:
    fill = {"llamagen": "marginals", "var": "nothing"}[family]
    assert {row["fill"] for method, row in result.items() if method.startswith("skip-")} == {fill}
    assert {row["fill"] for method, row in result.items() if not method.startswith("skip-")} == {None}


def test_tokens_are_matched_for_methods_that_share_the_teachers_noise(result: Rows) -> None:
    followed = {method for method, row in result.items() if row["token_match"] is not None}
    assert followed == {"teacher-flow", "student-1", "student-2"}
    assert result["teacher-flow"]["token_match"] == 1.0
    assert 0 < result["student-1"]["token_match"] < 1


def test_scores_compare_with_the_real_digits(result: Rows) -> None:
    for row in result.values():
        assert 0 <= row["precision"] <= 1
        assert 0 <= row["recall"] <= 1
        assert 1 <= row["inception_score"] <= 10
    assert result["real"]["frechet_distance"] < 1 < result["teacher"]["frechet_distance"]
    assert result["real"]["class_accuracy"] > 0.95


def test_seconds_are_measured_except_for_skip_n(result: Rows) -> None:
    quarter = {"1": 0.25, "64": 0.25}
    for method, row in result.items():
        untimed = method in ("real", "reconstruction") or method.startswith("skip-")
        assert row["seconds_per_image"] == (None if untimed else quarter)


def pairs_from(root: Path, first: int, count: int) -> list[tuple[int, np.ndarray]]:
    """Labels and tokens of pairs with consecutive indices, read shard by shard."""
    manifest = Manifest.open(root)
    shards = [read_shard(root, manifest.spec, row) for row in manifest.rows]
    pairs = [
        (label, tokens_L)
        for shard in shards
        for index, label, tokens_L in zip(shard.index_B, shard.label_B, shard.tokens_BL, strict=True)
        if first <= index < first + count
    ]
    assert len(pairs) == count
    return pairs


def shares(sequences: list[np.ndarray], position: int) -> torch.Tensor:
    """The share of each token at a position."""
    tokens = torch.tensor([int(tokens_L[position]) for tokens_L in sequences])
    return torch.bincount(tokens, minlength=24) / len(sequences)


def test_frequencies_are_those_of_the_students_training_pairs(methods: Methods, pairs_root: Path) -> None:
    manifest = Manifest.open(pairs_root)
    trained_on = pairs_from(pairs_root, manifest.spec.num_heldout, NUM_PAIRS)
    fours = [tokens_L for label, tokens_L in trained_on if label == 4]
    for position in range(manifest.spec.num_tokens):
        torch.testing.assert_close(methods.frequencies_KLV[4, position], shares(fours, position))
    few = count_tokens(pairs_root, manifest.view(NUM_PAIRS), 5)
    assert torch.equal(few, methods.frequencies_KLV[:5])
    assert not torch.equal(methods.frequencies_KLV, count_tokens(pairs_root, manifest.view(), 100))


def test_generation_is_reproducible(methods: Methods) -> None:
    labels = torch.arange(12) % 10
    for method in methods.compared:
        once, again = generate_all(methods, method, labels), generate_all(methods, method, labels)
        assert torch.equal(once[0], again[0]), method
        assert once[0].shape == (12, 1, 8, 8)
        assert once[0].min() >= 0
        assert once[0].max() <= 1
    teacher_tokens = generate_all(methods, TEACHER, labels)[1]
    skips = [method for method in methods.compared if isinstance(method, SkipN)]
    assert len(skips) == 2
    for method in skips:
        images, tokens = generate_all(methods, method, labels, teacher_tokens)
        assert torch.equal(images, generate_all(methods, method, labels)[0]), method
        assert torch.equal(tokens, teacher_tokens)


@pytest.mark.parametrize("size", [1, 7])
def test_an_image_is_the_same_in_any_batch(methods: Methods, size: int) -> None:
    methods = replace(methods, seed=3)
    labels = torch.arange(50) % 10
    for method in methods.compared:
        whole = methods.generate(method, 0, labels)
        firsts = range(14, 35, size)
        parts = [methods.generate(method, first, labels[first : first + size]) for first in firsts]
        images, tokens = (torch.cat([getattr(part, name) for part in parts]) for name in ("images_BIHW", "tokens_BL"))
        assert torch.equal(tokens, whole.tokens_BL[14:35]), method
        torch.testing.assert_close(images, whole.images_BIHW[14:35], rtol=0, atol=1e-5, msg=method.name)


def test_the_teacher_computes_in_the_dtype_of_the_pairs(
    student: Student, pairs_root: Path, teacher_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lineage = Manifest.open(pairs_root).spec.lineage
    opened = Manifest.open

    def in_bfloat16(root: Path) -> Manifest:
        manifest = opened(root)
        manifest.spec.lineage["teacher"]["dtype"] = "bfloat16"
        return manifest

    assert lineage["teacher"]["dtype"] == "float32"
    student.fingerprint = in_bfloat16(pairs_root).spec.fingerprint
    monkeypatch.setattr("distill.sampling.methods.Manifest.open", in_bfloat16)
    monkeypatch.setattr("distill.sampling.methods.count_tokens", lambda *_: torch.ones(10, 1, 24))
    methods = open_methods(student, str(teacher_path), pairs_root, seed=0, num_images=100)
    assert {p.dtype for p in methods.teacher.transformer.parameters()} == {torch.bfloat16}
    assert methods.generate(TEACHER_FLOW, 0, torch.tensor([1, 2])).images_BIHW.dtype == torch.float32


@pytest.fixture
def small(evaluate_student: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Evaluates with the protocol samples: 12 images, three at a time; every call measures other times."""
    seconds = itertools.count(1)

    def run(out: Path, should_stop: Callable[[], bool] = lambda: False, **settings: object) -> dict[str, Any]:
        config = EvaluationConfig(protocol="samples", num_images=12, **settings)
        return evaluate_student(out, config, should_stop=should_stop, seconds=next(seconds), batch_size=3)

    return run


def test_a_stopped_evaluation_saves_finished_methods_and_resumes_to_the_same_bytes(
    small: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()
    with pytest.raises(Stopped, match="5 of 18 methods are done and kept"):
        small(tmp_path / "stopped", lambda: next(calls) == 5 * 4 + 2, repeats=2)
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == [".evaluation"]
    generated: list[Method] = []
    generate = Methods.generate

    def recording(self: Methods, method: Method, *arguments: Any) -> Any:
        generated.append(method)
        return generate(self, method, *arguments)

    monkeypatch.setattr(Methods, "generate", recording)
    resumed = small(tmp_path / "stopped", repeats=2)
    assert len(generated) == 13 * 4
    monkeypatch.undo()
    whole = small(tmp_path / "whole", repeats=2)
    for row, other in zip(resumed["rows"], whole["rows"], strict=True):
        # The stopped evaluation measured the times, once.
        assert row["decode_seconds_per_image"] == {"1": 1}
        times = {"seconds_per_image", "decode_seconds_per_image"}
        assert {k: v for k, v in row.items() if k not in times} == {k: v for k, v in other.items() if k not in times}
    for path in (tmp_path / "whole" / "samples").iterdir():
        assert path.read_bytes() == (tmp_path / "stopped" / "samples" / path.name).read_bytes()
    names = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert names == {"evaluation.json", "samples"}


def test_partial_results_of_another_evaluation_are_discarded(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    calls = itertools.count()
    with pytest.raises(Stopped):
        small(tmp_path, lambda: next(calls) == 10)
    again = small(tmp_path, seed=4)
    assert again["rows"][0]["decode_seconds_per_image"] == {"1": 2}
    assert again["seed"] == 4


def test_a_damaged_partial_result_is_refused_with_instructions(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    calls = itertools.count()
    with pytest.raises(Stopped):
        small(tmp_path, lambda: next(calls) == 10)
    saved = tmp_path / ".evaluation" / "evaluation" / "teacher-seed-0.safetensors"
    saved.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(Refused, match=r"teacher-seed-0\.safetensors is damaged: delete .*evaluation to start"):
        small(tmp_path)


@pytest.mark.parametrize(
    "family", [pytest.param("llamagen", marks=pytest.mark.slow), "var"], indirect=True, scope="session"
)
def test_repeats_give_means_and_deviations_over_noise_seeds(evaluated: Callable[..., Rows], tmp_path: Path) -> None:
    def rows(**settings: int) -> Rows:
        return evaluated(tmp_path, EvaluationConfig(num_images=100, **settings))

    both, first, second = rows(seed=5, repeats=2), rows(seed=5), rows(seed=6)
    for method in ("teacher", "student-1", "onestep*"):
        for score in SCORES:
            values = [first[method][score], second[method][score]]
            assert both[method][score] == pytest.approx(statistics.mean(values), rel=1e-12)
            assert both[method][f"{score}_std"] == pytest.approx(statistics.stdev(values), rel=1e-9)
            assert first[method][f"{score}_std"] is None
    matches = [found["student-1"]["token_match"] for found in (first, second)]
    assert both["student-1"]["token_match"] == pytest.approx(statistics.mean(matches))
    assert both["real"] == first["real"]
    assert both["teacher-flow"]["token_match"] == 1.0


def test_the_comparison_has_the_papers_rows(methods: Methods) -> None:
    assert comparison_rows(methods.compared) == [
        *(StudentAlone((0,)), StudentAlone((0, 2)), PreTrained(2, 3), PreTrained(1, 3)),
        *(TEACHER_FLOW, ONESTEP_STAR),
    ]
    assert comparison_rows([TEACHER, StudentAlone((0,))]) == [StudentAlone((0,))]


def test_a_student_of_other_pairs_is_refused(student: Student, pairs_root: Path, teacher_path: Path) -> None:
    student.fingerprint = "0" * 64
    with pytest.raises(Refused, match="the student was trained on pairs 000000000000, but"):
        open_methods(student, str(teacher_path), pairs_root, seed=0, num_images=100)


def test_the_protocol_samples_changes_only_the_scores(
    result: Rows, evaluated: Callable[..., Rows], tmp_path: Path
) -> None:
    rows = evaluated(tmp_path, EvaluationConfig(protocol="samples", num_images=100))
    assert list(rows) == [method for method in result if method not in ("real", "reconstruction")]
    for method, row in rows.items():
        assert row == {**result[method], **dict.fromkeys((*SCORES, AT_REAL_IMAGES))}
    assert (
        *("frechet_distance", "teacher_distance", "inception_score"),
        *("precision", "recall", "class_accuracy"),
    ) == SCORES
    grids = {path.stem for path in (tmp_path / "samples").iterdir()}
    assert grids == {method.replace("*", "-star") for method in rows} | {"comparison"}


def test_methods_with_fewer_images_than_the_real_ones_have_no_distance_at_their_number(result: Rows) -> None:
    """100 images of each method, and 500 real ones."""
    for method, row in result.items():
        expected = row["frechet_distance"] if method in ("real", "reconstruction") else None
        assert row["frechet_distance_at_real_images"] == expected, method


def test_batch_sizes_above_the_number_of_images_are_not_timed(evaluated: Callable[..., Rows], tmp_path: Path) -> None:
    rows = evaluated(tmp_path, EvaluationConfig(protocol="samples", num_images=2), "evaluation-samples.json")
    assert [path.name for path in tmp_path.glob("*.json")] == ["evaluation-samples.json"]
    assert rows["student-1"]["seconds_per_image"] == {"1": 0.25}
    assert rows["teacher"]["decode_seconds_per_image"] == {"1": 0.25}
    with Image.open(tmp_path / "samples" / "teacher.png") as grid:
        assert grid.size == (2 * 32 + 4, 32)


@pytest.mark.parametrize("protocol", ["adm", "dd", "folder"])
def test_other_references_score_every_method(
    evaluated: Callable[..., Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """The digits classifier replaces the Inception network; the real digits are the reference."""
    real = to_unit_range(load_digits_split().train_images[:150])
    pixels = (real * 255).round().to(torch.uint8)
    classifier = load_digits_classifier()
    moments = Moments.of(extract(classifier, pixels / 255))
    monkeypatch.setattr(inception, "DIM", classifier.dim)
    monkeypatch.setattr(inception, "load_inception", lambda *_: load_digits_classifier())
    monkeypatch.setattr(inception, "refuse_missing_package", lambda: None)
    monkeypatch.setattr(inception, "local_weights", lambda weights: None)
    reference = tmp_path / protocol
    if protocol == "adm":
        reference = tmp_path / "batch.npz"
        grey = pixels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        np.savez(reference, arr_0=grey, mu=moments.mean_F, sigma=moments.covariance_FF)
        # The file stores three channels, and the classifier takes one.
        monkeypatch.setattr(
            "distill.evaluation.reference_images.ReferenceBatch.images",
            lambda batch, size, indices=None: iter((pixels[indices or slice(None)] / 255).split(size)),
        )
    elif protocol == "dd":
        torch.save({"m": moments.mean_F, "s": moments.covariance_FF}, reference)
    else:
        save_images(reference, pixels / 255)
    repeats = 2 if protocol == "folder" else 1
    config = EvaluationConfig(
        protocol=protocol, reference=str(reference), num_images=100, features="digits", repeats=repeats
    )
    name = f"evaluation-{protocol}.json"
    rows = evaluated(tmp_path / "out", config, name)
    real_rows = {"adm": ["real"], "dd": [], "folder": ["real", "reconstruction"]}[protocol]
    assert list(rows)[:-9] == real_rows
    for method, row in rows.items():
        assert row["frechet_distance"] > (0.5 if method in real_rows else 1)
        assert method == "real" or not real_rows or row["frechet_distance"] > rows["real"]["frechet_distance"]
        assert (row["recall"] is None) == (protocol == "dd")
    stored = json.loads((tmp_path / "out" / name).read_text())
    assert stored.get("real_images") == (75 if real_rows else None)
    assert list(stored.get("missing_rows", {})) == [row for row in ("real", "reconstruction") if row not in real_rows]
    assert stored["reference"] == str(reference)
    assert len(stored["reference_sha256"]) == 64
    assert stored["repeats"] == repeats
    if repeats == 2:
        assert all(row["frechet_distance_std"] > 0 for method, row in rows.items() if method not in real_rows)


def test_too_few_images_to_score_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_images is 99, and the scores of the protocol digits need"):
        EvaluationConfig(protocol="digits", num_images=99)
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        EvaluationConfig(protocol="samples", num_images=1)


def test_images_of_another_shape_are_not_scored_as_digits(
    evaluated: Callable[..., Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.evaluation.protocols.DIGITS_SHAPE", (1, 28, 28))
    with pytest.raises(Refused, match="digits scores images of 1 x 28 x 28, and this teacher's are of 1 x 8 x 8"):
        evaluated(tmp_path, EvaluationConfig(num_images=100))
    assert list(tmp_path.iterdir()) == []


def test_classes_without_pairs_get_the_marginals_of_all_pairs(pairs_root: Path) -> None:
    # Fewer pairs than classes.
    view = Manifest.open(pairs_root).view(5)
    labels = {index % view.spec.num_classes for index in range(view.first, view.first + view.size)}
    absent = min(set(range(view.spec.num_classes - 1)) - labels)
    table = count_tokens(pairs_root, view, view.spec.num_classes - 1)
    of_all = [tokens_L for _, tokens_L in pairs_from(pairs_root, view.first, view.size)]
    torch.testing.assert_close(table[absent, 0], shares(of_all, 0))
    assert torch.equal(count_tokens(pairs_root, view, 3), table[:3])


def test_batches_of_large_images_are_small() -> None:
    assert max_batch_size((1, 8, 8)) == 250
    assert max_batch_size((3, 256, 256)) == 16
    assert max_batch_size((3, 4096, 4096)) == 1


def test_no_batch_is_larger_than_the_limit(methods: Methods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.student.sampler.BATCH_PIXELS", 5 * 64)
    timed: list[int] = []

    def seconds_per_image(functions: dict[str, object], batch_size: int) -> dict[str, float]:
        timed.append(batch_size)
        return dict.fromkeys(functions, 0.25)

    monkeypatch.setattr("distill.evaluation.timing.seconds_per_image", seconds_per_image)
    batches: list[int] = []
    generate = Methods.generate

    def counting(
        self: Methods, method: Method, first: int, labels_B: torch.Tensor, tokens_BL: torch.Tensor | None
    ) -> object:
        batches.append(len(labels_B))
        return generate(self, method, first, labels_B, tokens_BL)

    monkeypatch.setattr(Methods, "generate", counting)
    images = evaluate_samples(methods, tmp_path)
    assert timed == [1]
    assert batches == [5, 5, 2] * len(methods.compared)
    assert {len(batch) for batch in images.values()} == {12}


def test_only_the_shown_images_are_kept(methods: Methods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.evaluation.method_evaluation.grid_size", lambda side: (3, 2))
    monkeypatch.setattr("distill.student.sampler.BATCH_PIXELS", 4 * 64)
    monkeypatch.setattr("distill.evaluation.method_evaluation.time_methods", lambda *_: {"decode": {}})
    images = evaluate_samples(methods, tmp_path)
    assert {len(shown) for shown in images.values()} == {6}
    labels = torch.arange(12) % 10
    student_1 = StudentAlone((0,))
    assert torch.equal(images[student_1], generate_all(methods, student_1, labels)[0][:6])


def test_grids_of_large_images_show_fewer(tmp_path: Path) -> None:
    images = torch.zeros(64, 3, 256, 256)
    save_samples(tmp_path, {TEACHER_FLOW: images, StudentAlone((0,)): images})
    with Image.open(tmp_path / "student-1.png") as grid:
        assert grid.size == (4 * 256 + 3 * 4,) * 2
    with Image.open(tmp_path / "comparison.png") as grid:
        assert grid.height == 2 * 256 + 4
        assert 4 * 256 < grid.width < 1200
