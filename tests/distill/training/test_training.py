"""Training from pairs to export: resuming gives equal bytes, and only pairs and teacher are read."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.student.student import Student
from distill.training.metrics import CLOCK_COLUMNS, read_metrics
from shards.core.errors import Refused, Stopped
from shards.dataset.manifest import Manifest
from shards.storage.files import refuse_unwritable


def export_bytes(folder: Path) -> dict[str, bytes]:
    names = ("student.safetensors", "tokenizer.safetensors", "config.json")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def uninterrupted(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out)
    return out


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_stopped_and_run_again_ends_in_the_same_bytes(run: Any, uninterrupted: Path, tmp_path: Path, steps: int) -> None:
    with pytest.raises(Stopped, match=f"{steps} of 12 steps"):
        run(tmp_path, stop_after=steps)
    run(tmp_path)
    assert export_bytes(tmp_path) == export_bytes(uninterrupted)
    again, once = (read_metrics(out / "metrics").drop_columns(list(CLOCK_COLUMNS)) for out in (tmp_path, uninterrupted))
    assert again.equals(once)


def test_data_workers_do_not_affect_the_result_and_may_change(run: Any, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="5 of 12 steps"):
        run(tmp_path, num_workers=2, stop_after=5)
    run(tmp_path, num_workers=1)
    assert multiprocessing.active_children() == []
    assert export_bytes(tmp_path) == export_bytes(uninterrupted)


KILLED = """
import os, signal, sys
from pathlib import Path
import distill.training.trainer as trainer
from distill.config import DistillConfig
config = DistillConfig.model_validate_json(sys.argv[1])
commits = iter(range(1000))
def kill_at(real, when):
    def wrapped(*arguments, **keywords):
        if next(commits) == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **keywords)
    return wrapped
import distill.training.checkpoint as checkpoint
checkpoint.commit_bytes = kill_at(checkpoint.commit_bytes, int(sys.argv[5]))
trainer.train(config, sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), size=96,
              report=lambda *_: None, should_stop=lambda: False)
"""


@pytest.mark.parametrize(
    "family", ["llamagen", pytest.param("var", marks=pytest.mark.slow)], indirect=True, scope="session"
)
@pytest.mark.parametrize("when", [1, *(pytest.param(when, marks=pytest.mark.slow) for when in (0, 3))])
def test_killed_while_writing_a_checkpoint_it_resumes_from_the_one_before(
    run: Any, distill_config: Any, uninterrupted: Path, pairs_root: Path, teacher_path: Path, tmp_path: Path, when: int
) -> None:
    arguments = map(str, (distill_config().model_dump_json(), teacher_path, pairs_root, tmp_path, when))
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    run(tmp_path)
    assert export_bytes(tmp_path) == export_bytes(uninterrupted)


@pytest.fixture
def no_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.training.state.Training.update", lambda _: pytest.fail("a step was repeated"))


@pytest.mark.usefixtures("no_updates")
def test_finished_training_is_not_repeated(run: Any, uninterrupted: Path) -> None:
    before = export_bytes(uninterrupted)
    run(uninterrupted)
    assert export_bytes(uninterrupted) == before


NO_DIGITS = """
import sys
from pathlib import Path
import sklearn.datasets
def opened(*_, **__):
    raise AssertionError("stage two opened the digits")
sklearn.datasets.load_digits = opened
def audit(event, arguments):
    if event == "open" and "digits" in str(arguments[0]) and "sklearn" in str(arguments[0]):
        opened()
sys.addaudithook(audit)
from distill.config import DistillConfig
from distill.training.trainer import train
config = DistillConfig.model_validate_json(sys.argv[1])
train(config, sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), size=96,
      report=lambda *_: None, should_stop=lambda: False)
forbidden = [name for name in sys.modules if name.startswith(("distill.evaluation", "generate_pairs.digits"))]
assert not forbidden, forbidden
"""


@pytest.mark.parametrize(
    "family", ["llamagen", pytest.param("var", marks=pytest.mark.slow)], indirect=True, scope="session"
)
def test_stage_two_reads_nothing_but_pairs_and_teacher(
    distill_config: Any, pairs_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    arguments = map(str, (distill_config(num_steps=1).model_dump_json(), teacher_path, pairs_root, tmp_path))
    finished = subprocess.run([sys.executable, "-c", NO_DIGITS, *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "student.safetensors").exists()


def test_progress_begins_where_the_training_does(run: Any, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    options = {"report": lambda done, total, _: reported.append((done, total))}
    with pytest.raises(Stopped):
        run(tmp_path, stop_after=3, options=options)
    assert reported == [(0, 12), (2, 12)]
    reported.clear()
    run(tmp_path, options=options)
    assert reported == [(3, 12), (4, 12), (6, 12), (8, 12), (10, 12), (12, 12)]


def test_a_finished_training_returns_its_last_metrics(run: Any, uninterrupted: Path) -> None:
    summary = run(uninterrupted)
    last = read_metrics(uninterrupted / "metrics").to_pylist()[-1]
    assert summary.num_steps == last.pop("step") == 12
    assert summary.metrics == last


def test_the_thread_count_is_restored(run: Any, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run(tmp_path, num_steps=1, threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if the teacher is loaded: a refusal must come earlier."""
    monkeypatch.setattr("distill.lineage.load_teacher", lambda *_, **__: pytest.fail("the teacher was loaded"))


@pytest.mark.usefixtures("no_work")
def test_fewer_steps_than_the_checkpoint_has_are_refused(run: Any, uninterrupted: Path) -> None:
    with pytest.raises(Refused, match=r"train\.num_steps is 5, but .* already has 12 steps"):
        run(uninterrupted, num_steps=5)


@pytest.mark.usefixtures("no_work")
def test_an_unwritable_folder_is_refused(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    with pytest.raises(Refused, match="choose a place where you may"):
        run(tmp_path / "file" / "student")


def test_the_check_for_an_unwritable_folder_leaves_no_files(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("here already")
    with pytest.raises(Refused, match="cannot write"):
        refuse_unwritable(tmp_path / "file")


def test_the_export_records_its_pairs(uninterrupted: Path, pairs_root: Path) -> None:
    assert json.loads((uninterrupted / "config.json").read_bytes())["num_pairs"] == 96
    student = Student.from_pretrained(uninterrupted)
    assert student.num_pairs == 96
    assert student.lineage == Manifest.open(pairs_root).spec.lineage
    # The folder of a published student must not reveal paths or dates.
    assert str(pairs_root.parent) not in (uninterrupted / "config.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": None}, "split: Field required"),
        ({"family": "vqgan"}, "no family of teachers is called 'vqgan'"),
        ({"tokens_per_step": 3}, "tokens_per_step"),
        ({"network": {"depth": 2}}, "describes no network"),
        ({"tokenizer": {"colour": "red"}}, "describes no network"),
        ({"schema_version": 99}, "schema_version 99"),
    ],
)
def test_a_damaged_configuration_of_an_export_is_refused_by_its_name(
    uninterrupted: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_bytes()) | change
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(Refused, match=rf"config\.json .*{message}"):
        Student.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 2'])
def test_a_configuration_that_is_not_an_object_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(Refused, match=r"config\.json is damaged.*tokenleap distill"):
        Student.from_pretrained(tmp_path)


def test_the_loss_falls(run: Any, tmp_path: Path) -> None:
    run(tmp_path, num_steps=80, learning_rate=1e-2, log_interval=1)
    losses = read_metrics(tmp_path / "metrics")["token_loss"].to_pylist()
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_export_samples_without_the_teacher_and_reloads_the_same(uninterrupted: Path) -> None:
    student = Student.from_pretrained(uninterrupted)
    noise_BLC = torch.randn(3, student.layout.num_tokens, 3, generator=torch.Generator().manual_seed(0))
    labels_B = torch.tensor([0, 5, 9])
    once = student.finish(noise_BLC, 0, labels_B)
    again = Student.from_pretrained(uninterrupted).finish(noise_BLC, 0, labels_B)
    assert torch.equal(once.embeddings_BLC, again.embeddings_BLC)
    assert student.tokenizer.decode(once.embeddings_BLC).shape == (3, 1, 8, 8)


def test_a_checkpoint_of_another_training_is_refused(run: Any, uninterrupted: Path) -> None:
    with pytest.raises(Refused, match=r"learning_rate: found 0\.001, requested 0\.5"):
        run(uninterrupted, learning_rate=0.5)


def test_a_damaged_checkpoint_is_skipped_with_a_message(run: Any, uninterrupted: Path, tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoints" / "step-000012.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "student.safetensors").unlink()
    messages: list[str] = []
    run(tmp_path, options={"notify": messages.append})
    assert messages == [f"{path} is damaged (its sha256 is not the recorded one): resuming from step 8 instead"]
    assert export_bytes(tmp_path) == export_bytes(uninterrupted)


@pytest.mark.parametrize("name", ["student.safetensors", "tokenizer.safetensors", "config.json"])
def test_an_incomplete_export_is_refused(uninterrupted: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    with pytest.raises(Refused, match=name.split(".")[0]):
        Student.from_pretrained(tmp_path)


def test_timesteps_outside_the_teacher_are_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="teacher's AR steps"):
        run(tmp_path, student={"timesteps": [0, 40]})


def test_more_pairs_than_available_are_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="has 96 training pairs"):
        run(tmp_path, options={"size": 97})


@pytest.mark.usefixtures("no_updates")
def test_the_noise_weight_may_change_after_training(run: Any, uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "student")
    run(tmp_path / "student", student={"noise_weight": 0.5})
    assert Student.from_pretrained(tmp_path / "student").noise_weight == 0.5
    before, after = export_bytes(uninterrupted), export_bytes(tmp_path / "student")
    assert [name for name in before if before[name] != after[name]] == ["config.json"]
