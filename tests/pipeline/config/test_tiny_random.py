"""`--tiny-random`: the paper's presets from the first pair to the last image, with small teachers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from distill.student.sampler import sample_sequence
from distill.student.student import Student
from distill.training.checkpoint import newest_checkpoint
from distill.training.distributed import World
from distill.training.preflight import checked_manifest
from distill.training.state import Training
from pipeline.cli.main import main
from pipeline.config.run_config import RunConfig, compose, to_toml
from pipeline.config.tiny_random import SIZES
from shards.core.errors import Refused
from shards.format.noise import gaussian_noise

Command = Callable[..., Result]

EVEN_SMALLER = (
    *("pairs.num_pairs=8", "pairs.num_heldout=4", "pairs.pairs_per_shard=4", "pairs.batch_size=4"),
    *("pairs.solver_steps=4", "train.num_steps=4", "train.batch_size=4", "train.checkpoint_interval=1"),
    *("train.log_interval=1", "evaluation.num_images=2"),
)
PRESETS = {
    "var-d16": ("var", 680, (0, 5)),
    "llamagen-l": ("llamagen", 256, (0, 80)),
    "llamagen-t2i": ("llamagen", 256, (0, 80)),
}
"""One of each family, and one for captions, with its tokens and timesteps."""
CAPTIONS = ('a "quoted" caption', "an emoji 🦘", "قطة على سجادة", "long " * 2_000, "", "a cat", "a cat")


def arguments(preset: str, out: Path, text_options: Sequence[str]) -> list[str]:
    settings = [word for setting in EVEN_SMALLER for word in ("--set", setting)]
    return ["run", preset, "--tiny-random", "--out", str(out), "--workers", "0", *text_options, *settings]


def run_to_the_end(preset: str, out: Path, text_options: Sequence[str]) -> Result:
    """Run in this process, without the timing of methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.evaluation.timing.seconds_per_image", lambda makers, _: dict.fromkeys(makers, 0.25))
        return CliRunner().invoke(main, arguments(preset, out, text_options))


def results(out: Path) -> dict[str, bytes]:
    """The shards, captions and their features, and the student's export."""
    names = ("student.safetensors", "tokenizer.safetensors", "config.json")
    pairs = [*(out / "pairs" / "shards").glob("[!.]*.tar"), *(out / "pairs").glob("captions.parquet")]
    pairs += (out / "pairs" / "text_features").glob("[!.]*")
    return {path.name: path.read_bytes() for path in [*pairs, *(out / "student" / name for name in names)]}


@pytest.fixture(scope="module", params=["var-d16", "llamagen-t2i", pytest.param("llamagen-l", marks=pytest.mark.slow)])
def preset(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def text_options(
    preset: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ...]:
    """Further options: for a text-conditional teacher, captions and a T5 with random weights."""
    if "t2i" not in preset:
        return ()
    folder = tmp_path_factory.mktemp("text")
    (folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    encoder = request.getfixturevalue("text_models").write_t5(folder / "t5", 2048)
    return "--captions", str(folder / "captions.txt"), "--set", f"captions.encoder={encoder}"


@pytest.fixture(scope="module")
def uninterrupted(preset: str, text_options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("uninterrupted") / preset
    result = run_to_the_end(preset, out, text_options)
    assert result.exit_code == 0, result.output
    assert re.search(r"method +token match +ms/image at 1 +speed-up at 1\n", result.stdout)
    return out


def test_both_stages_and_the_evaluation_run(uninterrupted: Path, preset: str) -> None:
    family, num_tokens, timesteps = PRESETS[preset]
    assert len(results(uninterrupted)) == 3 + 3 + (2 if "t2i" in preset else 0)
    exported = json.loads((uninterrupted / "student" / "config.json").read_text())
    assert exported["family"] == family
    assert sum(exported["tokens_per_step"]) == num_tokens
    assert tuple(exported["timesteps"]) == timesteps
    evaluation = json.loads((uninterrupted / "evaluation.json").read_text())
    assert (evaluation["protocol"], evaluation["num_images"]) == ("samples", 2)
    rows = {row["method"]: row for row in evaluation["rows"]}
    assert rows["teacher-flow"]["token_match"] == 1.0
    assert rows["student-2"]["num_steps"] == 2
    assert {row["frechet_distance"] for row in rows.values()} == {None}
    for name in ("report.html", "metrics.parquet", "samples/comparison.png"):
        assert (uninterrupted / name).is_file()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(
    uninterrupted: Path,
    preset: str,
    text_options: tuple[str, ...],
    tmp_path: Path,
    run_and_kill: Callable[..., None],
) -> None:
    killed, log = tmp_path / "killed", tmp_path / "killed.log"
    command = [sys.executable, "-m", "pipeline.cli", *arguments(preset, killed, text_options)]
    checkpoints = killed / "student" / "checkpoints"
    if text_options:
        run_and_kill(command, log, lambda: any((killed / "pairs" / "shards").glob("*.tar")))
        assert not checkpoints.exists()
    run_and_kill(command, log, lambda: any(checkpoints.glob("step-*.json")))
    assert not (killed / "student" / "config.json").exists()
    assert run_to_the_end(preset, killed, text_options).exit_code == 0
    assert results(killed) == results(uninterrupted)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_student_generates_in_one_step_and_in_two(
    tokenleap: Command, uninterrupted: Path, text_options: tuple[str, ...], home: Path, tmp_path: Path, steps: int
) -> None:
    out, captions = tmp_path / "grid.png", text_options[:2]
    tokenleap(
        *("sample", uninterrupted / "student", "--steps", steps, "--labels", "1,2", "--num-images", 4, "--out", out),
        *captions,
    )
    with Image.open(out) as grid:
        assert (grid.mode, grid.size) == ("RGB", (2 * 32 + 4,) * 2)


def test_the_export_makes_the_tokens_of_the_student_that_was_trained(uninterrupted: Path, preset: str) -> None:
    _, num_tokens, timesteps = PRESETS[preset]
    config = compose(preset, EVEN_SMALLER, tiny_random=True)
    training = Training(
        config.distill,
        config.teacher.name,
        checked_manifest(config.distill, uninterrupted / "pairs"),
        config.pairs.num_pairs,
        World(),
    )
    folder = uninterrupted / "student" / "checkpoints"
    checkpoint, _ = newest_checkpoint(folder, training.identity, config.train.num_steps)
    training.restore(checkpoint)
    for parameter, average in zip(training.parameters, training.averages, strict=True):
        parameter.data.copy_(average)
    trained, loaded = training.student.eval(), Student.from_pretrained(uninterrupted / "student")
    shape = (num_tokens, training.codebook_VC.shape[1])
    noise_BLC = torch.from_numpy(gaussian_noise(7, 0, 3, shape)).float()
    loaded.texts = trained.texts
    labels_B = torch.tensor([0, 4, 9]) % trained.num_classes
    for passes in (timesteps[:1], timesteps):
        expected = sample_sequence(trained, noise_BLC, labels_B, passes)
        found = sample_sequence(loaded, noise_BLC, labels_B, passes)
        assert torch.equal(found.tokens_BL, expected.tokens_BL)
        assert torch.equal(found.embeddings_BLC, expected.embeddings_BLC)
        assert len(found.tokens_BL.unique()) > 10


def test_only_the_teacher_and_sizes_change() -> None:
    real, trial = compose("var-d24"), compose("var-d24", tiny_random=True)
    assert trial.teacher.model_dump() == {**real.teacher.model_dump(), "name": "tiny-random/var-d24"}
    assert trial.student == real.student
    for section, sizes in SIZES.items():
        expected = {**getattr(real, section).model_dump(), **sizes}
        if section == "evaluation":
            expected["curve_images"] = sizes["num_images"]
        assert getattr(trial, section).model_dump() == expected


def test_options_override_the_sizes_of_the_trial(tokenleap: Command, tmp_path: Path) -> None:
    flags = ["--num-pairs", 96, "--num-steps", 7, "--set", "pairs.batch_size=4", "--set", "train.num_steps=8"]
    result = tokenleap("run", "llamagen-b", "--tiny-random", "--out", tmp_path / "run", *flags, "--dry-run")
    for line in ("num_pairs = 96", "num_steps = 7", "batch_size = 4", 'name = "tiny-random/llamagen-b-256"'):
        assert line in result.stdout.splitlines()
    assert "96 training pairs and 32 held out, in 4 shards of 32" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_its_folder_is_named_after_the_preset(
    tokenleap: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = tokenleap("run", "var-d20", "--tiny-random", "--dry-run")
    assert "pairs into runs/var-d20-tiny-random/pairs:" in planned.stdout


def test_separate_commands_give_the_same_trial(
    tokenleap: Command, uninterrupted: Path, preset: str, text_options: tuple[str, ...], tmp_path: Path
) -> None:
    """The data set stores its captions, so later commands may omit them."""
    settings = [word for setting in EVEN_SMALLER for word in ("--set", setting)]
    settings += text_options[2:]
    planned = tokenleap("generate", preset, "--tiny-random", "--out", uninterrupted / "pairs", *settings, "--dry-run")
    assert "3 shards are done, 0 to make" in planned.stdout, planned.output
    tokenleap(
        *("distill", preset, "--tiny-random", "--pairs", uninterrupted / "pairs", "--out", tmp_path / "student"),
        *settings,
    )
    exported = tmp_path / "student" / "student.safetensors"
    assert exported.read_bytes() == (uninterrupted / "student" / "student.safetensors").read_bytes()


def test_a_preset_file_can_be_shrunk(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[teacher]\nname = "llamagen-t2i-256"\n[train]\nseed = 5\n')
    trial = compose(str(file), tiny_random=True)
    assert trial.teacher.name == "tiny-random/llamagen-t2i-256"
    assert (trial.train.seed, trial.train.num_steps) == (5, SIZES["train"]["num_steps"])


def test_a_small_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="and digits, the teacher of preset digits, is not one: leave the"):
        compose("digits", tiny_random=True)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(compose("var-d16", tiny_random=True)))
    with pytest.raises(Refused, match=r"and tiny-random/var-d16, the teacher of preset .*config\.toml, is not one"):
        compose(str(file), tiny_random=True)
    assert isinstance(compose(str(file)), RunConfig)


def test_an_invalid_preset_is_refused_as_without_the_option(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text('pairs = 3\n[teacher]\nname = "var-d16"\n')
    with pytest.raises(Refused, match="pairs is a section, not a value"):
        compose(str(file), tiny_random=True)
