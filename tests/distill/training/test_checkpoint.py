"""Checkpoints: the newest intact one is loaded, another training is refused, and old ones are deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.training.checkpoint import Checkpoint, newest_checkpoint, refuse_other_training, save_checkpoint
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

IDENTITY = {"pairs": 96, "seed": 0}


def save_at(folder: Path, *steps: int) -> None:
    for step in steps:
        tensors = {"weights": torch.full((2,), float(step))}
        save_checkpoint(folder, Checkpoint(step, tensors, {"stream": {}}, IDENTITY))


def newest(folder: Path, num_steps: int = 10**9) -> Checkpoint | None:
    checkpoint, damaged = newest_checkpoint(folder, IDENTITY, num_steps) or (None, ())
    assert damaged == ()
    return checkpoint


def test_a_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path / "checkpoints") is None


def test_the_highest_step_is_the_newest_and_two_checkpoints_are_kept(tmp_path: Path) -> None:
    save_at(tmp_path, 999_998, 999_999, 1_000_000)
    found = newest(tmp_path)
    assert found.step == 1_000_000
    assert found.tensors["weights"].tolist() == [1e6, 1e6]
    stems = {path.stem for path in tmp_path.iterdir()}
    assert stems == {"step-999999", "step-1000000"}


@pytest.mark.parametrize("name", ["step-latest.json", "notes.json", "step-000009 copy.json", "step-9.json"])
def test_other_names_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    save_at(tmp_path, 4)
    (tmp_path / name).write_text("{}")
    assert newest(tmp_path).step == 4


@pytest.mark.parametrize("content", ["[]", "{", "null", "{}", '{"schema_version": 2, "step": 8}'])
def test_with_a_damaged_mark_the_checkpoint_before_is_loaded(tmp_path: Path, content: str) -> None:
    save_at(tmp_path, 4, 8)
    mark = tmp_path / "step-000008.json"
    mark.write_text(content)
    checkpoint, (message,) = newest_checkpoint(tmp_path, IDENTITY, 10)
    assert checkpoint.step == 4
    assert str(mark) in message
    assert "is damaged" in message


@pytest.mark.parametrize("damage", ["missing", "sha256"])
def test_with_missing_or_damaged_tensors_the_checkpoint_before_is_loaded(tmp_path: Path, damage: str) -> None:
    save_at(tmp_path, 4, 8)
    tensors = tmp_path / "step-000008.safetensors"
    if damage == "missing":
        tensors.unlink()
    else:
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"!")
    checkpoint, (message,) = newest_checkpoint(tmp_path, IDENTITY, 10)
    assert checkpoint.tensors["weights"].tolist() == [4.0, 4.0]
    assert str(tensors) in message
    assert damage in message


def test_if_all_checkpoints_are_damaged_training_does_not_silently_restart(tmp_path: Path) -> None:
    save_at(tmp_path, 4, 8)
    (tmp_path / "step-000008.json").write_text("{")
    (tmp_path / "step-000004.safetensors").unlink()
    with pytest.raises(Refused, match=r"all checkpoints in .* are damaged: .*step-000008\.json.*; .*Delete that folder"):
        newest_checkpoint(tmp_path, IDENTITY, 10)


@pytest.mark.parametrize("kept", [1, 2])
def test_damaged_newer_checkpoints_are_deleted_by_the_next_commit(tmp_path: Path, kept: int) -> None:
    save_at(tmp_path, 8)
    for step in (12, 16, 20):
        save_checkpoint(tmp_path, Checkpoint(step, {}, {}, IDENTITY), kept=4)
    for step in (16, 20):
        (tmp_path / f"step-0000{step}.safetensors").unlink()
    checkpoint, _ = newest_checkpoint(tmp_path, IDENTITY, 30)
    assert checkpoint.step == 12
    save_checkpoint(tmp_path, Checkpoint(14, {}, {}, IDENTITY), kept=kept)
    assert newest(tmp_path).step == 14
    marks = sorted(path.stem for path in tmp_path.glob("*.json"))
    assert marks == ["step-000012", "step-000014"][-kept:]


def test_checkpoints_are_kept_by_number_and_by_interval(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        save_checkpoint(tmp_path, Checkpoint(step, {}, {}, IDENTITY), kept=2, keep_interval=30)
    kept = {f"step-{step:06d}" for step in (30, 60, 70)}
    assert {path.stem for path in tmp_path.iterdir()} == kept


def test_another_schema_is_refused(tmp_path: Path) -> None:
    save_at(tmp_path, 4)
    mark = tmp_path / "step-000004.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"schema_version": 99}))
    with pytest.raises(Refused, match="schema_version 99"):
        newest(tmp_path)


def test_fewer_steps_than_are_done_are_refused_and_as_many_are_not(tmp_path: Path) -> None:
    save_at(tmp_path, 8)
    with pytest.raises(Refused, match=r"train\.num_steps is 7, but .*step-000008\.json already has 8 steps"):
        newest(tmp_path, num_steps=7)
    assert newest(tmp_path, num_steps=8).step == 8


def test_another_training_is_refused_by_what_differs(tmp_path: Path) -> None:
    save_at(tmp_path, 4)
    with pytest.raises(Refused, match="pairs: found 96, requested 128"):
        refuse_other_training(tmp_path, {"pairs": 128})
