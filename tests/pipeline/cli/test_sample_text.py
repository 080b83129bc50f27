"""`tokenleap sample` and `Student.sample` with a text-conditional student."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from distill import Student
from generate_pairs.compute.threads import computing_threads
from generate_pairs.config import GenerateConfig
from generate_pairs.generation.plan import requested_pairs
from generate_pairs.teachers.checkpoints import load_teacher
from shards.core.errors import Refused

Command = Callable[..., Result]
ODD = ('a "quoted" three, isn\'t it', "an emoji 🦘", "قطة على سجادة", "long " * 2_000, "", "a three")


@pytest.fixture(autouse=True)
def _one_thread(home: Path) -> Iterator[None]:
    with computing_threads(1):
        yield


def exported(folder: Path, teacher: str, **captions: str) -> Path:
    """The export of an untrained student of an embedded teacher."""
    loaded = load_teacher(teacher)
    settings = {"teacher": {"name": teacher, "guidance_scale": 1.25}, "pairs": {}, "captions": captions}
    spec, _ = requested_pairs(GenerateConfig.model_validate(settings), loaded, None)
    torch.manual_seed(0)
    made = Student.from_teacher(loaded, (0, 8), 16, spec.fingerprint, 100, initialise=True, lineage=spec.lineage)
    made.export(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("text") / "student", "digits-text", file="digits", encoder="digits")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_prompts_are_used_in_turn(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    prompts = ["--prompt", "a three", "--prompt", "the sum of one and two"]
    drawn = tokenleap("sample", student, *prompts, "--num-images", 6, "--out", out)
    assert "6 images, student-1, timesteps 0, seed 0" in drawn.stdout
    captions = ["a three", "the sum of one and two"] * 3
    images = Student.from_pretrained(student).sample(captions)
    assert images.shape == (6, 1, 8, 8)
    grid = pixels(out)
    assert grid.shape == (3 * 32 + 8, 2 * 32 + 4)
    for index, image in enumerate(images[:, 0]):
        top, left = index // 2 * 36, index % 2 * 36
        shown = grid[top : top + 32 : 4, left : left + 32 : 4].astype(int)
        assert np.abs(shown - (image * 255).round().int().numpy()).max() <= 1


def test_a_caption_determines_the_image(student: Path) -> None:
    loaded = Student.from_pretrained(student)
    three, same, eight = (loaded.sample([caption] * 4) for caption in ("a three", " A THREE ", "an eight"))
    assert torch.equal(three, same)
    assert (three - eight).abs().max() > 0.1


@pytest.mark.parametrize("method", ["student-2", "pre-trained-5-9", "teacher", "teacher-flow"])
def test_every_method_accepts_unusual_captions(tokenleap: Command, student: Path, tmp_path: Path, method: str) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"{caption}\n" for caption in ODD))
    out = tmp_path / "images"
    tokenleap("sample", student, "--captions", captions, "--method", method, "--out", out)
    assert len(list(out.glob("*.png"))) == len(ODD)


def test_a_folder_grows_and_belongs_to_its_captions(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    captions, out = tmp_path / "captions.txt", tmp_path / "images"
    captions.write_text("a three\nan eight\n")
    command = ("sample", student, "--captions", captions, "--out", out)
    tokenleap(*command)
    first = {path.name: path.read_bytes() for path in out.glob("*.png")}
    tokenleap(*command, "--num-images", 5)
    assert len(list(out.glob("*.png"))) == 5
    assert {name: (out / name).read_bytes() for name in first} == first
    assert "all 5 images exist already" in tokenleap(*command, "--num-images", 5).stdout
    captions.write_text("a three\nan eigth\n")
    assert "captions_sha256" in tokenleap(*command, "--num-images", 5, code=2).stderr
    assert "captions_sha256" in json.loads((out / "sample.json").read_text())


def test_labels_are_indices_of_captions(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    tokenleap(
        *("sample", student, "--captions", "digits", "--labels", "3,13", "--num-images", 2),
        *("--out", tmp_path / "a.png"),
    )
    tokenleap(
        *("sample", student, "--prompt", "a three", "--prompt", "the digit three", "--num-images", 2),
        *("--out", tmp_path / "b.png"),
    )
    assert np.abs(pixels(tmp_path / "a.png").astype(int) - pixels(tmp_path / "b.png")).max() <= 1
    outside = tokenleap("sample", student, "--prompt", "a", "--labels", "1", "--out", tmp_path / "c.png", code=2)
    assert "label 1" in outside.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], 'give --prompt "TEXT", once or more, or --captions FILE'),
        (["--prompt", "a", "--captions", "digits"], 'give --prompt "TEXT", once or more, or --captions FILE'),
        (["--captions", "nowhere.txt"], "nowhere.txt: it is missing"),
        (["--prompt", "a", "--text-encoder", "tiny-random/64"], "the text encoder tiny-random/64 has sha256"),
        (["--prompt", "a", "--text-encoder", "none.safetensors"], "there is no file none.safetensors"),
        (["--prompt", "a", "--text-encoder", "nowhere", "--dry-run"], "there is no folder nowhere"),
        (["--prompt", "a", "--column", "text"], "--column text: this option needs --captions FILE"),
    ],
)
def test_invalid_captions_are_refused(
    tokenleap: Command, student: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    assert message in tokenleap("sample", student, *words, "--out", tmp_path / "grid.png", code=2).stderr
    assert not (tmp_path / "grid.png").exists()


def test_a_class_conditional_student_refuses_captions(tokenleap: Command, tmp_path: Path) -> None:
    of_classes = exported(tmp_path / "student", "digits")
    for words in (["--prompt", "a three"], ["--captions", "digits"], ["--text-encoder", "digits"]):
        refused = tokenleap("sample", of_classes, *words, "--out", tmp_path / "grid.png", code=2)
        assert "draws images for classes" in refused.stderr
    with pytest.raises(Refused, match="draws images for classes"):
        Student.from_pretrained(of_classes).sample(["a three"])


def test_a_student_without_a_text_encoder_is_refused(student: Path) -> None:
    loaded = Student.from_pretrained(student)
    with pytest.raises(ValueError, match="set them with `with_texts`"):
        loaded(torch.zeros(1, 16, 3), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    loaded.lineage = {key: value for key, value in (loaded.lineage or {}).items() if key != "text_encoder"}
    with pytest.raises(Refused, match="names no text encoder"):
        loaded = loaded.with_captions(["a three"])


def test_features_are_cached_on_this_host(student: Path, home: Path) -> None:
    loaded = Student.from_pretrained(student)
    loaded.sample(["a three"])
    (kept,) = (home / "text_features").iterdir()
    changed = kept.stat().st_mtime_ns
    loaded.sample(["a three"])
    assert kept.stat().st_mtime_ns == changed
    loaded.sample(["an eight"])
    assert len(list((home / "text_features").iterdir())) == 2


def test_a_moved_encoder_is_recognised_by_its_content(student: Path, tmp_path: Path) -> None:
    from generate_pairs.config import ENCODERS

    copy = tmp_path / "moved.safetensors"
    copy.write_bytes((ENCODERS / "digits.safetensors").read_bytes())
    loaded = Student.from_pretrained(student)
    loaded = loaded.with_captions(["a three"], encoder=str(copy), folder=tmp_path / "features")
    assert loaded.texts is not None
    assert loaded.texts(torch.tensor([0])).features_BTE.shape == (1, 3, 64)


def test_captions_of_a_named_column(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    captions, out = tmp_path / "captions.jsonl", tmp_path / "images"
    captions.write_text('{"text": "a three"}\n{"text": "an eight"}\n')
    tokenleap("sample", student, "--captions", captions, "--column", "text", "--out", out)
    assert len(list(out.glob("*.png"))) == 2


def test_captions_apply_to_one_call_only(student: Path) -> None:
    loaded = Student.from_pretrained(student)
    with pytest.raises(Refused, match="labels must be a list"):
        loaded.sample("a three")
    with pytest.raises(Refused, match="all captions or all numbers"):
        loaded.sample(["a three", 1])  # type: ignore[list-item]
    loaded.sample(["a three"])
    assert loaded.texts is None
    with pytest.raises(Refused, match="give captions, or call `with_captions` first"):
        loaded.sample([0])
    loaded = loaded.with_captions(["an eight", "a three"])
    assert torch.equal(loaded.sample([0]), loaded.sample(["an eight"]))
    assert torch.equal(loaded.sample([0]), loaded.sample(["an eight"]))


def test_there_is_no_official_layout(tokenleap: Command, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "official.pt"
    refused = tokenleap("export", student, "--format", "official", "--out", out, code=2)
    assert "no official layout of such a student was published" in refused.stderr
    assert not out.exists()
