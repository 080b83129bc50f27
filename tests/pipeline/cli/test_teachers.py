"""Published teachers and students on the command line: messages, exit codes, and refusals that write nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import Result

from distill.student.student import Student
from generate_pairs.teachers.checkpoints import load_teacher
from generate_pairs.teachers.published import TEACHERS
from shards.storage.files import sha256_file

Command = Callable[..., Result]


def message(result: Result) -> str:
    """The one message of a command that failed."""
    assert result.stdout == ""
    assert result.stderr.startswith("tokenleap: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("tokenleap: ").rstrip("\n")


def test_a_teacher_is_imported_and_listed(tokenleap: Command, published: Any, home: Path) -> None:
    files = published.write_both()
    row = next(line for line in tokenleap("teachers", "list").stdout.splitlines() if published.teacher in line)
    config = TEACHERS[published.teacher].transformer.config
    assert f"{config.layout.num_tokens} tokens in " in row
    assert " missing " in row
    assert str(TEACHERS[published.teacher].transformer.file) in row

    first = tokenleap("teachers", "import", *files, "--as", published.teacher)
    path = home / "teachers" / f"{published.teacher}.safetensors"
    assert first.stdout == (
        f"transformer: sha256 {sha256_file(Path(files[0]))}\n"
        f"tokenizer: sha256 {sha256_file(Path(files[1]))}\n"
        f"{path}: use it as --set teacher.name={published.teacher}\n"
    )
    again = tokenleap("teachers", "import", *reversed(files), "--as", published.teacher)
    assert again.stdout == first.stdout
    row = next(line for line in tokenleap("teachers", "list").stdout.splitlines() if published.teacher in line)
    assert " imported " in row
    assert load_teacher(published.teacher).family == published.family


@pytest.mark.parametrize("family", ["llamagen"])
def test_included_and_other_imported_teachers_are_listed(tokenleap: Command, published: Any, home: Path) -> None:
    (home / "teachers").mkdir(parents=True)
    (home / "teachers" / "mine.safetensors").touch()
    lines = {line.split()[0]: line for line in tokenleap("teachers", "list").stdout.splitlines()}
    assert list(lines) == ["digits", "digits-64", "digits-text", "digits-var", published.teacher, "mine"]
    assert "16 tokens in   16 AR steps  ships with tokenleap" in lines["digits"]
    assert str(home / "teachers") in lines["mine"]


def test_repeated_rows_of_the_codebook_are_reported(tokenleap: Command, published: Any) -> None:
    state = dict(published.weights.official("tokenizer"))
    state["quantize.embedding.weight"] = torch.ones_like(state["quantize.embedding.weight"])
    files = [published.write("transformer"), published.write("tokenizer", state)]
    result = tokenleap("teachers", "import", *files, "--as", published.teacher)
    assert "note: 23 codebook rows equal another; of equal rows" in result.stdout


def not_a_number(published: Any) -> tuple[list[str], str]:
    state = dict(published.weights.official("tokenizer"))
    state["decoder.conv_in.bias"] = torch.full_like(state["decoder.conv_in.bias"], torch.nan)
    files = [published.write("transformer"), published.write("tokenizer", state)]
    return files, "tokenizer.pth does not fit"


def empty(published: Any) -> tuple[list[str], str]:
    (published.folder / "empty.pth").touch()
    files = [published.write("transformer"), str(published.folder / "empty.pth")]
    return files, "empty.pth is not a complete checkpoint"


def more_than_weights(published: Any) -> tuple[list[str], str]:
    file = published.folder / "more.pth"
    torch.save({"model": published.weights.official("transformer"), "path": file}, file)
    return [str(file), published.write("tokenizer")], "more.pth is not read: its pickle needs pathlib"


CASES = {
    "not a number": not_a_number,
    "gone": lambda published: ([published.write("transformer"), "gone.pth"], "there is no file gone.pth"),
    "empty": empty,
    "more than weights": more_than_weights,
    "one file": lambda published: ([published.write("transformer")], "consists of two files"),
    "on the Hub": lambda published: ([], "pip install '.[hub]'"),
}
"""Files to import, and a part of the message that refuses them."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", ["teachers", "students"])
def test_invalid_files_are_refused_with_one_message(
    tokenleap: Command,
    published: Any,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    case: Callable[[Any], tuple[list[str], str]],
    kind: str,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    files, expected = case(published)
    if kind == "teachers":
        result = tokenleap("teachers", "import", *files, "--as", published.teacher, code=2)
    else:
        files = [file.replace("transformer.pth", "student.pth") for file in files]
        published.write("student")
        name, out = published.student, tmp_path / "out"
        result = tokenleap("students", "import", *files, "--as", name, "--out", out, code=2)
    assert expected in message(result)
    assert not home.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["var"])
def test_an_unknown_name_is_refused(tokenleap: Command, published: Any, tmp_path: Path) -> None:
    words = ("import", *published.write_both(), "--as", "var-d17")
    found = message(tokenleap("teachers", *words, code=2))
    assert found == "no published teacher is called 'var-d17': there are small-var"
    found = message(tokenleap("students", *words, "--out", tmp_path / "out", code=2))
    assert found == "no published student is called 'var-d17': there are small-var-dd"


def test_another_import_under_the_name_is_refused(
    tokenleap: Command, published: Any, published_files: ModuleType, home: Path
) -> None:
    files = published.write_both()
    tokenleap("teachers", "import", *files, "--as", published.teacher)
    before = sha256_file(home / "teachers" / f"{published.teacher}.safetensors")
    other = {name: tensor + 1 for name, tensor in published.weights.transformer.items()}
    files[0] = published.write("transformer", other, "other.pth")
    expected = message(tokenleap("teachers", "import", *files, "--as", published.teacher, code=2))
    assert "exists already, made from files of another sha256 (" in expected
    assert sha256_file(home / "teachers" / f"{published.teacher}.safetensors") == before


def test_inspect_reports_the_network_of_a_file(tokenleap: Command, published: Any) -> None:
    file = published.write("student")
    place = ".".join(published.container("student"))
    assert tokenleap("teachers", "inspect", file).stdout == f"{file} fits, at {place}, the student {published.student}\n"


def test_inspect_names_all_networks_of_one_shape(
    tokenleap: Command, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEACHERS, "twin", TEACHERS[published.teacher])
    result = tokenleap("teachers", "inspect", published.write("transformer"))
    lines = result.stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in lines[:2]] == [published.teacher, "twin"]
    assert lines[2:] == ["these have the same names and shapes, so the file alone cannot distinguish them"]


def test_inspect_names_the_nearest_network_of_an_unknown_one(tokenleap: Command, published: Any) -> None:
    state = published.weights.official("transformer")
    state["new.weight"] = torch.zeros(1)
    file = published.write("transformer", state)
    result = tokenleap("teachers", "inspect", file, code=1)
    nearest = f"nearest is the transformer of {published.teacher}: unknown new.weight"
    assert result.stdout == f"{file} fits no published network; the {nearest}\n"


def test_inspect_refuses_an_unreadable_file(tokenleap: Command, published: Any) -> None:
    file = published.folder / "file.pth"
    file.write_bytes(b"not a checkpoint")
    assert message(tokenleap("teachers", "inspect", file, code=2)).startswith(f"{file} is not a complete checkpoint")
    assert message(tokenleap("teachers", "inspect", "gone.pth", code=2)) == "there is no file gone.pth"


def test_a_student_is_imported_sampled_and_exported(tokenleap: Command, published: Any, tmp_path: Path) -> None:
    listed = tokenleap("students", "list")
    assert f"{published.student} of {published.teacher}" in " ".join(listed.stdout.split())
    folder = tmp_path / "student"
    files = published.write_both(student=True)
    tokenleap("students", "import", *files, "--as", published.student, "--out", folder)
    for steps in (1, 2):
        out = tmp_path / f"{steps}.png"
        tokenleap("sample", folder, "--steps", steps, "--labels", "3,7", "--num-images", 4, "--out", out)
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "2.png").read_bytes()

    official = tmp_path / f"out{'.pth' if published.family == 'var' else '.pt'}"
    exported = tokenleap("export", folder, "--format", "official", "--out", official)
    assert exported.stderr == ""
    config = json.loads((folder / "config.json").read_text()) | {"noise_weight": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    noted = tokenleap("export", folder, "--format", "official", "--out", official)
    assert "(noise_weight 0.5); the official code takes the likeliest ones" in noted.stderr
    back = tmp_path / "back"
    tokenleap("students", "import", official, files[1], "--as", published.student, "--out", back)
    one, two = (Student.from_pretrained(place).network.state_dict() for place in (folder, back))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_export_with_another_suffix_is_refused(tokenleap: Command, published: Any, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    files = published.write_both(student=True)
    tokenleap("students", "import", *files, "--as", published.student, "--out", folder)
    right, wrong = (".pth", ".pt") if published.family == "var" else (".pt", ".pth")
    for name in (f"out{wrong}", "out.safetensors", "out"):
        result = tokenleap("export", folder, "--format", "official", "--out", tmp_path / name, code=2)
        assert f"{tmp_path / name} must end in {right}," in result.stderr.replace("\n", " ")
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("family", ["var"])
def test_an_export_of_another_family_is_refused(tokenleap: Command, published: Any, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    files = published.write_both(student=True)
    tokenleap("students", "import", *files, "--as", published.student, "--out", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "family": "grid-gru"}))
    result = tokenleap("export", folder, "--format", "official", "--out", tmp_path / "out.pt", code=2)
    expected = "students of the family 'grid-gru' have no official layout: only var and llamagen have one"
    assert message(result) == expected
    assert not (tmp_path / "out.pt").exists()


def test_an_export_of_no_student_is_refused(tokenleap: Command, tmp_path: Path) -> None:
    result = tokenleap("export", tmp_path, "--format", "official", "--out", tmp_path / "out.pt", code=2)
    assert message(result).startswith(f"{tmp_path} contains no student")
