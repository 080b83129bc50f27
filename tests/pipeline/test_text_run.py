"""A small `tokenleap run digits-text`: captions from the pairs to the report, CLIP scores, other sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result

from distill import Student
from distill.evaluation.feature_extractors.clip_score import ClipScore
from generate_pairs.text.digit_captions import digits_captions
from pipeline.cli.main import main
from shards.dataset.captions import commit_captions

SMALL = [
    word
    for setting in (
        *("pairs.num_pairs=40", "pairs.num_heldout=20", "pairs.pairs_per_shard=20", "pairs.batch_size=20"),
        *("pairs.solver_steps=4", "train.num_steps=4", "train.batch_size=8", "train.checkpoint_interval=2"),
        *("train.warmup_steps=2", "train.log_interval=1", "train.threads=1", "evaluation.num_images=100"),
    )
    for word in ("--set", setting)
]


def run_quickly(*words: object, code: int = 0) -> Result:
    """Run a command in this process, without the timing of methods; it must end with the exit code `code`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.evaluation.timing.seconds_per_image", lambda makers, _: dict.fromkeys(makers, 0.25))
        result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("text") / "run"
    run_quickly("run", "digits-text", "--workers", 0, "--out", out, *SMALL)
    return out


def test_accuracy_uses_the_digits_that_captions_name(run: Path) -> None:
    result = json.loads((run / "evaluation.json").read_text())
    rows = {row["method"]: row for row in result["rows"]}
    # The teacher follows its captions; onestep* ignores them.
    assert rows["teacher"]["class_accuracy"] > 0.9
    assert rows["teacher-flow"]["class_accuracy"] > 0.85
    assert rows["onestep*"]["class_accuracy"] < 0.5
    assert result["captions"] == [digits_captions()[column] for column in range(20)]
    assert {row["clip_score"] for row in rows.values()} == {None}


def test_the_report_shows_the_captions(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert '<li dir="auto">a three</li>' in page
    assert page.count('<li dir="auto">') == 20


def test_a_finished_run_is_not_repeated(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    run_quickly("run", "digits-text", "--workers", 0, "--out", run, *SMALL)
    assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before


def test_other_captions_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a three\n")
    refused = run_quickly(
        *("run", "digits-text", "--captions", tmp_path / "captions.txt", "--workers", 0, "--out", run), *SMALL, code=2
    )
    assert "captions.sha256" in refused.stderr


def test_a_clip_model_scores_every_method(
    run: Path, text_models: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENLEAP_HOME", str(tmp_path / "home"))
    folder = text_models.write_clip(tmp_path / "clip")
    command = ("evaluate", run, "--protocol", "samples", "--num-images", 6, "--set", f"evaluation.clip={folder}")
    assert "CLIP" in run_quickly(*command).stdout
    result = json.loads((run / "evaluation-samples.json").read_text())
    clip = ClipScore.load(str(folder))
    assert (result["clip"], result["clip_sha256"]) == (str(folder), clip.sha256)
    scores = {row["method"]: row["clip_score"] for row in result["rows"]}
    assert all(0 <= score <= 100 for score in scores.values())
    student, captions = Student.from_pretrained(run / "student"), digits_captions()[:6]
    student = student.with_captions(captions, folder=tmp_path)
    images = student.sample(captions)
    expected = clip.scores(images, captions).mean().item()
    assert scores["student-1"] == pytest.approx(expected, abs=1e-4)
    assert clip.scores(images, captions[::-1]).mean().item() != pytest.approx(expected, abs=1e-4)
    table = run_quickly("evaluate", run, "--protocol", "samples", "--table")
    assert f"CLIP score by {folder}: teacher " in table.stdout


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "there is no folder nowhere"), ("{run}/student", "holds a model of type None")]
)
def test_an_invalid_clip_model_is_refused_first(run: Path, name: str, message: str) -> None:
    command = ("evaluate", run, "--set", f"evaluation.clip={name.format(run=run)}", "--dry-run")
    assert message in run_quickly(*command, code=2).stderr


def test_a_clip_model_is_refused_for_classes(tmp_path: Path) -> None:
    words = ("run", "digits", "--out", tmp_path / "run", "--set", "evaluation.clip=anything", "--dry-run")
    assert "this teacher draws images for classes, not for captions" in run_quickly(*words, code=2).stderr


def test_missing_captions_are_reported_and_generate_restores_them(run: Path, tmp_path: Path) -> None:
    pairs = Path(shutil.copytree(run / "pairs", tmp_path / "pairs"))
    captions = pairs / "captions.parquet"
    before = captions.read_bytes()
    captions.unlink()
    damaged = run_quickly("shards", "verify", pairs, "--workers", 0, code=1)
    assert (
        f"captions: {captions} is missing; run `tokenleap generate` with the same captions to write it again"
        in damaged.stdout
    )
    assert f"restore the common files of all pairs, then run `tokenleap shards repair {pairs}`" in damaged.stderr
    refused = run_quickly("shards", "repair", pairs, "--workers", 0, code=2)
    assert f"{captions} is missing" in refused.stderr
    assert "without it nothing can be repaired" in refused.stderr
    run_quickly(*("generate", "digits-text", "--captions", "digits", "--out", pairs, "--workers", 0, *SMALL))
    assert captions.read_bytes() == before
    run_quickly("shards", "verify", pairs, "--workers", 0)


def test_a_size_may_be_smaller_than_the_number_of_captions(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "ablation"
    settings = [*SMALL, "--set", "evaluation.protocol=samples"]
    run_quickly(
        *("ablate", "digits-text", "--pairs", run / "pairs", "--sizes", "20,40", "--seeds", 1, "--out", out), *settings
    )
    assert (out / "ablation.parquet").is_file()


@torch.inference_mode()
def test_an_image_depends_on_its_caption_and_its_noise_alone(run: Path, tmp_path: Path) -> None:
    student = Student.from_pretrained(run / "student")
    student = student.with_captions(["a three", "the sum of four and four", "an eight"], folder=tmp_path)
    noise = torch.randn(2, 16, 3, generator=torch.manual_seed(0))
    together = student.finish(noise, 0, torch.tensor([0, 1]))
    alone = student.finish(noise[1:], 0, torch.tensor([1]))
    assert torch.equal(together.tokens_BL[1:], alone.tokens_BL)


def test_stored_other_captions_are_reported_before_the_data_set_is_created(tmp_path: Path) -> None:
    """A process that is killed between the two writes leaves captions without a data set."""
    (tmp_path / "captions.txt").write_text("a three\nan eight\n")
    pairs = tmp_path / "pairs"
    commit_captions(pairs, ["others"])
    command = ("generate", "digits-text", "--captions", tmp_path / "captions.txt", "--workers", 0, "--out", pairs)
    assert f"{pairs / 'captions.parquet'} contains captions with sha256" in run_quickly(*command, *SMALL, code=1).stderr
    assert not (pairs / "dataset.json").exists()
    (pairs / "captions.parquet").unlink()
    run_quickly(*command, *SMALL)
    assert "2 captions from" in run_quickly(*command, *SMALL, "--dry-run").stdout
    # The preset names captions, so stage two needs the option for other ones, too.
    distilled = ("distill", "digits-text", "--pairs", pairs, "--out", tmp_path / "student", *SMALL, "--dry-run")
    assert "captions.sha256" in run_quickly(*distilled, code=2).stderr
    run_quickly(*distilled, "--captions", tmp_path / "captions.txt")


def test_a_plan_prints_the_size_of_text_features(tmp_path: Path) -> None:
    planned = run_quickly("generate", "digits-text", "--out", tmp_path / "pairs", "--workers", 0, "--dry-run")
    assert "text features: 128 bytes a token of each distinct caption, at most 153.6 kB in all" in planned.stdout
    estimated = run_quickly("plan", "llamagen-t2i", "--device", "h100")
    assert "text features: 4,096 bytes a token of each distinct caption, at most 491.5 kB a caption" in estimated.stdout


@pytest.mark.parametrize("key", ["captions.indices", "captions.encoder"])
def test_caption_settings_are_refused_for_classes(tmp_path: Path, key: str) -> None:
    refused = run_quickly("generate", "digits", "--set", f"{key}=x", "--out", tmp_path, "--dry-run", code=2)
    assert f"{key} is x, but digits draws images for" in refused.stderr


def test_an_ablation_refuses_a_clip_model(run: Path, tmp_path: Path) -> None:
    command = ("ablate", "digits-text", "--pairs", run / "pairs", "--sizes", "20", "--out", tmp_path / "ablation")
    refused = run_quickly(*command, *SMALL, "--set", "evaluation.clip=anything", code=2)
    assert "an ablation does not use a CLIP model" in refused.stderr
