"""`tokenleap sample` with the digits: formats, labels, methods, refusals, and resuming after every kind of stop."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

import distill.sampling.job
from distill import Student
from generate_pairs.compute.threads import computing_threads
from generate_pairs.config import GenerateConfig
from generate_pairs.generation.plan import pair_spec
from generate_pairs.teachers.checkpoints import load_teacher, resolve
from shards.core.errors import Refused

Command = Callable[..., Result]
METHODS = ("student-1", "student-2", "pre-trained-1-9", "pre-trained-15-17", "teacher", "teacher-flow")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, as in the child processes."""
    with computing_threads(1):
        yield


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of an untrained student of the teacher digits."""
    loaded = load_teacher("digits")
    settings = {"teacher": {"name": "digits", "guidance_scale": 1.25}, "pairs": {"solver_steps": 8}}
    spec = pair_spec(GenerateConfig.model_validate(settings), loaded)
    torch.manual_seed(0)
    made = Student.from_teacher(loaded, (0, 8), 16, spec.fingerprint, 100, initialise=True, lineage=spec.lineage)
    folder = tmp_path_factory.mktemp("run") / "student"
    made.export(folder)
    return folder


def changed(student: Path, out: Path, **changes: Any) -> Path:
    """A copy of an export with changes in config.json."""
    shutil.copytree(student, out)
    content = json.loads((out / "config.json").read_text()) | changes
    (out / "config.json").write_text(json.dumps(content))
    return out


def content(out: Path) -> bytes | dict[str, bytes]:
    """The bytes of an npz file, or of every file in a folder."""
    if out.is_file():
        return out.read_bytes()
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


def drawn(out: Path) -> np.ndarray:
    """The images of a folder or an npz file, (N, H, W) as integers."""
    if out.suffix == ".npz":
        with np.load(out) as content:
            return content["arr_0"][..., 0].astype(int)
    return np.stack([np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]).astype(int)


def test_a_grid_of_the_labels_in_turn(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    result = tokenleap("sample", student, "--steps", 2, "--labels", "3,7", "--num-images", 5, "--seed", 4, "--out", out)
    assert result.stdout == f"{out}: 5 images, student-2, timesteps 0,8, seed 4\n"
    with Image.open(out) as grid:
        assert grid.size == (2 * 32 + 4, 3 * 32 + 2 * 4)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_folder_records_its_request(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "images"
    tokenleap("sample", student, "--num-images", 12, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [*(f"{i:06d}.png" for i in range(12)), "sample.json"]
    request = json.loads((out / "sample.json").read_text())
    config = json.loads((student / "config.json").read_text())
    assert request == {
        "student_sha256": config["student_sha256"],
        "tokenizer_sha256": config["tokenizer_sha256"],
        "method": "student-1",
        "timesteps": [0],
        "noise_weight": 0.0,
        "lineage": None,
        "seed": 0,
        "labels": "0..9",
        "num_images": 12,
    }
    images = Student.from_pretrained(student).sample([*range(10), 0, 1])
    assert np.array_equal(drawn(out), (images[:, 0] * 255).round().int().numpy())


def test_an_npz_has_the_format_of_the_adm_evaluator(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    tokenleap("sample", student, "--labels", "3,7", "--num-images", 5, "--out", out)
    with np.load(out, allow_pickle=False) as content:
        assert content.files == ["arr_0", "arr_1"]
        assert (content["arr_0"].dtype, content["arr_0"].shape) == (np.uint8, (5, 8, 8, 3))
        assert (content["arr_0"] == content["arr_0"][..., :1]).all()
        assert (content["arr_1"].dtype, content["arr_1"].tolist()) == (np.int64, [3, 7, 3, 7, 3])
    with zipfile.ZipFile(out) as archive, archive.open("arr_0.npy") as entry:
        # The evaluator streams only this version of the format.
        assert np.lib.format.read_magic(entry) == (1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    folder = tmp_path / "folder"
    tokenleap("sample", student, "--labels", "3,7", "--num-images", 5, "--out", folder)
    assert np.array_equal(drawn(out), drawn(folder))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_generates_the_same_images_in_any_batch(
    tokenleap: Command, student: Path, tmp_path: Path, method: str
) -> None:
    outs = {size: tmp_path / f"{size}.npz" for size in (1, 7, 50)}
    for size, out in outs.items():
        tokenleap("sample", student, "--method", method, "--num-images", 30, "--batch-size", size, "--out", out)
    images = {size: drawn(out) for size, out in outs.items()}
    assert images[50].std() > 10
    for size in (1, 7):
        assert np.abs(images[size] - images[50]).max() <= 1


def test_methods_differ_and_student_steps_are_a_method(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    images = {}
    for method in METHODS:
        out = tmp_path / f"{method}.npz"
        tokenleap("sample", student, "--method", method, "--num-images", 10, "--out", out)
        images[method] = drawn(out)
    for one in METHODS:
        assert [other for other in METHODS if np.array_equal(images[one], images[other])] == [one]
    by_steps = tmp_path / "steps.npz"
    tokenleap("sample", student, "--timesteps", "0,8", "--num-images", 10, "--out", by_steps)
    assert by_steps.read_bytes() == (tmp_path / "student-2.npz").read_bytes()


def test_labels_from_a_file_one_image_a_line(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    labels = [random.Random(1).randrange(10) for _ in range(25)]
    (tmp_path / "labels.txt").write_text("\n".join(map(str, labels)) + "\n")
    out = tmp_path / "x.npz"
    tokenleap("sample", student, "--labels", f"@{tmp_path / 'labels.txt'}", "--out", out)
    with np.load(out) as content:
        assert content["arr_1"].tolist() == labels
    (tmp_path / "labels.txt").write_text("1\ntwo\n")
    wrong = tokenleap("sample", student, "--labels", f"@{tmp_path / 'labels.txt'}", "--out", tmp_path / "y.npz", code=2)
    assert "labels.txt is not one whole number a line: " in wrong.stderr
    missing = tokenleap("sample", student, "--labels", "@nowhere", "--out", tmp_path / "y.npz", code=2)
    assert "cannot read nowhere" in missing.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    arguments = ("sample", student, "--method", "pre-trained-5-9", "--num-images", 50_000, "--out", out)
    result = tokenleap(*arguments, "--dry-run")
    assert result.stdout.splitlines() == [
        "method  pre-trained-5-9: 6 network passes an image",
        "images  50,000 of 1 x 8 x 8, 0 exist already",
        "labels  0..9 in turn",
        "seed    0",
        f"out     {out}, the ADM evaluator's npz; 9.6 MB of pixels",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", 3], "3 steps: this student was trained at timesteps 0,8, 2 in all"),
        (["--method", "student-3"], "3 steps: this student was trained at timesteps 0,8, 2 in all"),
        (["--steps", 1, "--timesteps", "0,8"], "give one of them"),
        (["--steps", 1, "--method", "teacher"], "give one of them"),
        (["--timesteps", "8"], "they must ascend from 0 and stay below 16"),
        (["--method", "onestep*"], "use student-K, pre-trained-N-M, pre-trained-N-M-flow, teacher or teacher-flow"),
        (["--method", "pre-trained-5-19"], "this teacher has 16 AR steps, so 1 <= N < M <= 17"),
        (["--teacher", "digits"], "--teacher digits: student-1 needs no teacher"),
        (["--method", "teacher", "--teacher", "digits-var"], "not by digits-var"),
        (["--method", "teacher", "--teacher", "unknown"], "Give its location with --teacher NAME-OR-FILE"),
        (["--labels", "one"], "'one' is not whole numbers separated by commas, as in 0,5"),
        (["--labels", "3,10"], "label 10: this student has labels 0 to 9"),
        (["--num-images", 0], "0 is not in the range x>=1"),
        (["--batch-size", 0], "0 is not in the range x>=1"),
        (["--seed", 2**63], "9223372036854775808 is not in the range 0<=x<=9223372036854775807"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["real", "dry"])
def test_invalid_options_are_refused(
    tokenleap: Command, student: Path, tmp_path: Path, arguments: list[Any], message: str, dry: list[str]
) -> None:
    result = tokenleap("sample", student, *arguments, "--out", tmp_path / "x.npz", *dry, code=2)
    assert message in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused_with_the_option_of_this_command(
    tokenleap: Command, student: Path, tmp_path: Path
) -> None:
    result = tokenleap("sample", student, "--device", "cuda", "--out", tmp_path / "x.png", code=2)
    assert "--device is cuda, but torch finds no GPU on " in result.stderr
    assert "or set --device=cpu" in result.stderr


def test_other_suffixes_are_refused(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    wrong = tokenleap("sample", student, "--out", tmp_path / "s.jpg", code=2)
    assert "s.jpg ends in .jpg: a .png name gets one grid" in " ".join(wrong.stderr.split())
    (tmp_path / "folder.npz").mkdir()
    assert "folder.npz is a folder: " in tokenleap("sample", student, "--out", tmp_path / "folder.npz", code=2).stderr


def test_a_student_without_lineage_is_sampled_alone(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    """Exports of earlier versions record no lineage."""
    old = tmp_path / "old"
    shutil.copytree(student, old)
    content = json.loads((old / "config.json").read_text())
    del content["lineage"]
    (old / "config.json").write_text(json.dumps(content))
    refused = tokenleap("sample", old, "--method", "teacher", "--out", tmp_path / "x.png", code=2)
    assert "this student's config.json names no lineage" in refused.stderr
    assert "Without a teacher, sample with --steps or --timesteps" in refused.stderr
    tokenleap("sample", old, "--steps", 2, "--out", tmp_path / "x.png")


def test_a_teacher_with_another_name_is_given_by_its_file(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    lineage = json.loads((student / "config.json").read_text())["lineage"]
    lineage["teacher"]["name"] = "mine"
    other = changed(student, tmp_path / "student", lineage=lineage)
    shutil.copy(resolve("digits"), tmp_path / "kept.safetensors")
    command = ("sample", other, "--method", "teacher", "--labels", "1", "--out")
    refused = tokenleap(*command, tmp_path / "x.npz", code=2)
    assert "the teacher of this student, mine (25bb68b6616b), is needed: " in refused.stderr
    tokenleap(*command, tmp_path / "x.npz", "--teacher", tmp_path / "kept.safetensors")
    # The name of the teacher changes no image.
    named = tokenleap("sample", student, *command[2:], tmp_path / "x.npz")
    assert named.stdout == f"{tmp_path / 'x.npz'}: all 8 images exist already\n"


def test_an_untrained_timestep_is_reported(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    for arguments, untrained in (
        (("--timesteps", "0,4,8"), "not at 4"),
        (("--method", "pre-trained-3-5"), "not at 4"),
        (("--method", "pre-trained-3-17"), ""),
        (("--timesteps", "0,8"), ""),
    ):
        result = tokenleap("sample", student, *arguments, "--dry-run", "--out", tmp_path / "x.png")
        note = "note: this student was trained at timesteps 0,8, " + untrained
        assert (note in result.stderr) == bool(untrained)


@pytest.mark.parametrize("name", ["images", "x.npz"])
def test_the_number_may_grow_and_nothing_else_may_change(
    tokenleap: Command, student: Path, tmp_path: Path, name: str
) -> None:
    out, uninterrupted = tmp_path / name, tmp_path / f"uninterrupted-{name}"
    command = ("sample", student, "--batch-size", 10, "--seed", 5)
    tokenleap(*command, "--num-images", 20, "--out", out)
    again = tokenleap(*command, "--num-images", 20, "--out", out)
    assert again.stdout == f"{out}: all 20 images exist already\n"
    for changes, message in (
        (("--seed", 6), "seed: found 5, requested 6"),
        (("--steps", 2), "method: found student-1, requested student-2; timesteps: found 0, requested 0,8"),
        (
            ("--method", "teacher"),
            "method: found student-1, requested teacher; noise_weight: found 0.0, requested no value; "
            "timesteps: found 0, requested no value.",
        ),
        (("--labels", "3"), "labels: found 0..9, requested 3"),
        (("--num-images", 19), "was started for 20 images, and their number may only grow: 19 are requested"),
    ):
        assert message in tokenleap(*command, "--num-images", 20, "--out", out, *changes, code=2).stderr
    tokenleap(*command, "--num-images", 33, "--out", out)
    tokenleap(*command, "--num-images", 33, "--out", uninterrupted)
    assert content(out) == content(uninterrupted)


def test_existing_other_files_are_not_changed(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "000003.png").write_bytes(b"mine")
    refused = tokenleap("sample", student, "--out", folder, code=2)
    assert f"{folder} holds something already (000003.png), and no sample.json" in refused.stderr
    np.savez(tmp_path / "mine.npz", np.zeros(3))
    refused = tokenleap("sample", student, "--out", tmp_path / "mine.npz", code=2)
    assert "mine.npz, which `tokenleap sample` did not write, does not describe its images" in refused.stderr
    (tmp_path / "cut.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:100])
    refused = tokenleap("sample", student, "--out", tmp_path / "cut.npz", code=2)
    assert "cut.npz is no complete npz file" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.npz", "folder", "mine.npz"]


def stop_in_batch(monkeypatch: pytest.MonkeyPatch, number: int, batch: int) -> list[int]:
    """Send this process a signal in the given batch; returns the first image of each generated batch."""
    opened, made = distill.sampling.job.open_method, []

    def opening(*arguments: Any) -> Any:
        make = opened(*arguments)

        def watched(first: int, labels_B: torch.Tensor) -> torch.Tensor:
            made.append(first)
            if len(made) == batch:
                os.kill(os.getpid(), number)
            return make(first, labels_B)

        return watched

    monkeypatch.setattr(distill.sampling.job, "open_method", opening)
    return made


@pytest.mark.parametrize("name", ["images", "x.npz"])
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_job_resumes(
    tokenleap: Command, student: Path, tmp_path: Path, name: str, number: int, exit_code: int
) -> None:
    out, uninterrupted = tmp_path / name, tmp_path / f"uninterrupted-{name}"
    command = ("sample", student, "--num-images", 45, "--batch-size", 10, "--out")
    tokenleap(*command, uninterrupted)
    with pytest.MonkeyPatch.context() as patch:
        assert stop_in_batch(patch, number, 2) == []
        stopped = tokenleap(*command, out, code=exit_code)
    assert "stopped: 20 of 45 images are made and kept. Resume with: " in stopped.stderr
    assert not (tmp_path / "x.npz").exists()
    with pytest.MonkeyPatch.context() as patch:
        made = stop_in_batch(patch, number, 0)
        tokenleap(*command, out)
    assert made == [20, 30, 40]
    assert content(out) == content(uninterrupted)
    assert not list(tmp_path.glob(".*"))


def test_a_stopped_grid_reports_that_nothing_was_saved(
    tokenleap: Command, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_batch(monkeypatch, signal.SIGTERM, 2)
    stopped = tokenleap("sample", student, "--batch-size", 10, "--out", tmp_path / "x.png", code=143)
    assert "a grid is written at its end only, nothing is kept. Start again with: " in stopped.stderr
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pipeline.cli.main import main
replace, left = os.replace, [int(sys.argv[1])]
def replacing(*names):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = replacing
main(sys.argv[2:])
"""
"""The command line, killed just before it renames its N-th file."""


@pytest.mark.parametrize("name", ["images", "x.npz"])
def test_a_killed_job_resumes_to_the_same_bytes(
    tokenleap: Command, run_python: Callable[..., Any], student: Path, tmp_path: Path, name: str
) -> None:
    out, uninterrupted = tmp_path / "out" / name, tmp_path / "uninterrupted" / name
    command = ("sample", student, "--method", "pre-trained-5-9", "--num-images", 31, "--batch-size", 8, "--out")
    tokenleap(*command, uninterrupted)
    # The first two files are a write test and sample.json. After 31 images or 4 parts, the npz is joined.
    moments = [2, random.Random(7).randint(4, 32)] if name == "images" else [random.Random(8).randint(4, 6), 7]
    for moment in moments:
        shutil.rmtree(out.parent, ignore_errors=True)
        killed = run_python("-c", KILLED, moment, *command, out)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "out" / "x.npz").exists()
        made = len(list(out.glob("*.png"))) + len(list((out.parent / ".x.npz.parts").glob("0*.npy")))
        # The images of a folder are written concurrently.
        assert made <= max(0, moment - 3)
        assert name == "images" or made == moment - 3
        tokenleap(*command, out)
        assert content(out) == content(uninterrupted)
        assert not (out.parent / ".x.npz.parts").exists()


def test_progress_counts_existing_images(
    tokenleap: Command, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[int, int]] = []

    @contextmanager
    def progress(title: str, unit: str) -> Iterator[Any]:
        assert (title, unit) == ("images", "images")
        yield lambda done, total, note: reports.append((done, total))

    monkeypatch.setattr("pipeline.runtime.progress.progress", progress)
    command = ("sample", student, "--batch-size", 10, "--out", tmp_path / "images", "--num-images")
    tokenleap(*command, 20)
    tokenleap(*command, 35)
    assert reports == [(0, 20), (10, 20), (20, 20), (20, 35), (30, 35), (35, 35)]


def test_the_default_labels_are_the_first_ten_classes_or_with_a_number_all(
    tokenleap: Command, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Student, "num_classes", 1000)
    few = tokenleap("sample", student, "--dry-run", "--out", tmp_path / "x.png")
    assert "images  80 of" in few.stdout
    assert "labels  0..9 in turn" in few.stdout
    many = tokenleap("sample", student, "--num-images", 50_000, "--dry-run", "--out", tmp_path / "x.png")
    assert "labels  0..999 in turn" in many.stdout


def test_a_student_comes_from_the_hub(
    tokenleap: Command, student: Path, tmp_path: Path, fake_module: Callable[..., None]
) -> None:
    downloads: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        downloads.append((repository, revision, allow_patterns))
        return str(student)

    fake_module("huggingface_hub", snapshot_download=snapshot_download)
    tokenleap("sample", "hf://owner/digits-dd@v1", "--out", tmp_path / "hub.png")
    tokenleap("sample", student, "--out", tmp_path / "local.png")
    assert (tmp_path / "hub.png").read_bytes() == (tmp_path / "local.png").read_bytes()
    assert {(repository, revision) for repository, revision, _ in downloads} == {("owner/digits-dd", "v1")}
    assert downloads[-1][2] == ["config.json", "student.safetensors", "tokenizer.safetensors"]
    downloads.clear()
    tokenleap("sample", "hf://owner/digits-dd", "--dry-run", "--out", tmp_path / "x.png")
    assert {(revision, *patterns) for _, revision, patterns in downloads} == {(None, "config.json")}


@pytest.mark.parametrize("name", ["hf://", "hf://one", "hf://a/b/c", "hf://a/b@", "hf:///b", "hf://a/"])
def test_other_names_on_the_hub_are_refused(name: str) -> None:
    with pytest.raises(Refused, match="a repository on the Hub is named hf://OWNER/REPOSITORY or"):
        Student.from_pretrained(name)


def test_a_missing_hub_client_is_refused_with_the_install_command(
    tokenleap: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = tokenleap("sample", "hf://owner/digits-dd", "--out", tmp_path / "x.png", code=2)
    assert "hf://owner/digits-dd needs the Hugging Face client: pip install '.[hub]'" in result.stderr


def test_another_noise_weight_is_another_request(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    arguments = ("sample", student, "--labels", "1,2", "--out", tmp_path / "images")
    tokenleap(*arguments, "--noise-weight", 2)
    assert "noise_weight" in tokenleap(*arguments, code=2).stderr
    tokenleap(*arguments[:-1], tmp_path / "plain")
    pixels = [(tmp_path / folder / "000000.png").read_bytes() for folder in ("images", "plain")]
    assert pixels[0] != pixels[1]


def test_each_timestep_may_have_its_own_noise_weight(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    arguments = ("sample", student, "--steps", 2, "--labels", "1,2", "--out", tmp_path / "images")
    tokenleap(*arguments, "--noise-weight", "0.5,2")
    assert "exist already" in tokenleap(*arguments, "--noise-weight", "0.5,2").output
    for wrong, message in (
        ("0.5,1,2", "3 numbers for 2 timesteps: give one for each of them, or one for all"),
        ("-1", "one for each, at least 0; got -1"),
        ("0.5,nan", "one for each, at least 0; got 0.5, nan"),
        ("much", "'much' is not a number or numbers separated by commas"),
    ):
        assert message in tokenleap(*arguments, "--noise-weight", wrong, code=2).stderr
