"""Both stages end to end: the order of phases, resuming, and stopping."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from distill.training.checkpoint import Checkpoint, save_checkpoint
from shards.core.errors import Failed

Command = Callable[..., Result]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_writes_all_results_and_prints_about_ten_lines(tokenleap: Command, stages: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = tokenleap("run", "digits", "--out", out, "--workers", 0, "--num-pairs", 20_000)
    assert stages.calls == ["generate", "train", "join_metrics", "evaluate"]
    assert stages.arguments["train"] == {"size": 20_000, "teacher": "digits"}
    for name in ("config.toml", "environment.json", "evaluation.json", "seconds.json", "report.html"):
        assert (out / name).is_file(), name
    lines = result.stdout.splitlines()
    assert 5 <= len(lines) <= 12
    assert "pairs     40 for training, 20 held out, 3 shards" in result.stdout
    assert lines[3] == "protocol  digits, 2,000 images, noise seed 0"
    assert lines[4:7] == [
        "method           Frechet  to teacher  precision  recall  accuracy  ms/image at 1  speed-up at 1  speed-up at 64",
        "teacher    1.250 ± 0.050       0.013      0.900   0.800     0.980  80.00 (81.00)      1.0 (1.0)       1.0 (1.0)",
        "student-1          3.500           -      0.850   0.750     0.950    8.00 (9.00)     10.0 (9.0)       4.0 (3.0)",
    ]
    assert str(out / "report.html") in lines[-1]


def test_the_folder_is_named_after_the_preset(
    tokenleap: Command, stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenleap("run", "digits-var", "--workers", 0)
    assert (tmp_path / "runs" / "digits-var" / "report.html").is_file()


def test_only_a_student_that_was_trained_further_is_evaluated_again(
    tokenleap: Command, stages: Any, tmp_path: Path
) -> None:
    for num_steps, evaluations in ((2000, 1), (2000, 1), (3000, 2)):
        tokenleap("run", "digits", "--out", tmp_path / "run", "--workers", 0, "--num-steps", num_steps)
        assert stages.calls.count("evaluate") == evaluations


def test_a_dry_run_shows_configuration_and_plan_and_writes_nothing(
    tokenleap: Command, stages: Any, tmp_path: Path
) -> None:
    sizes = ("--num-pairs", 20_000, "--num-steps", 2000)
    result = tokenleap("run", "digits", "--out", tmp_path / "run", "--set", "train.seed=9", *sizes, "--dry-run")
    assert "seed = 9" in result.stdout
    assert "3 shards to make" in result.stdout
    assert "2000 steps on 20000 pairs" in result.stdout
    assert "2,000 images of each method" in result.stdout
    assert stages.calls == []
    assert list(tmp_path.iterdir()) == []


def test_in_a_finished_run_a_plan_and_another_run_change_no_byte(tokenleap: Command, stages: Any, tmp_path: Path) -> None:
    tokenleap("run", "digits", "--out", tmp_path, "--workers", 0)
    stages.calls.clear()
    before = files(tmp_path)
    assert "is done" in tokenleap("run", "digits", "--out", tmp_path, "--dry-run").stdout
    for more in ([], ["--dry-run"]):
        result = tokenleap("run", "digits", "--out", tmp_path, "--set", "train.seed=5", *more, code=2)
        assert f"{tmp_path} contains a run with other settings: train.seed: found 0, requested 5." in result.stderr
        assert "another --out" in result.stderr
    assert stages.calls == []
    assert files(tmp_path) == before


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "plan"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.timesteps=0,99", "student.timesteps: 99 is not below 16, the teacher's AR steps"),
        ("student.split=17", "student.split: 17 is more than 16"),
        ("student.split=3", "student.split is 3, so the continuous head"),
        ("train.token_weight=0", "set train.token_weight above 0"),
        ("train.betas=0.9,5", "train.betas: betas must be at least 0 and below 1"),
        ("pairs.num_heldout=0", "pairs.num_heldout is 0"),
    ],
)
def test_settings_that_do_not_fit_the_teacher_are_refused_before_the_folder_is_claimed(
    tokenleap: Command, stages: Any, tmp_path: Path, override: str, message: str, more: list[str]
) -> None:
    result = tokenleap("run", "digits", "--out", tmp_path / "run", "--workers", 0, "--set", override, *more, code=2)
    assert message in result.stderr
    assert stages.calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["evaluation.json", "seconds.json", "environment.json"])
@pytest.mark.parametrize("content", ['{"pairs": 1', "[]", "\xff"])
def test_a_damaged_file_is_named_before_any_work_and_may_be_deleted(
    tokenleap: Command, stages: Any, tmp_path: Path, name: str, content: str
) -> None:
    arguments = ("run", "digits", "--out", tmp_path, "--workers", 0)
    tokenleap(*arguments)
    stages.calls.clear()
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    result = tokenleap(*arguments, code=2)
    assert result.stderr == f"tokenleap: {tmp_path / name} is damaged: delete it and run the same command again\n"
    assert stages.calls == []
    (tmp_path / name).unlink()
    tokenleap(*arguments)


def test_more_pairs_than_a_training_started_with_are_refused_with_the_commands(
    tokenleap: Command, stages: Any, tmp_path: Path
) -> None:
    arguments = ("run", "digits", "--out", tmp_path, "--workers", 0, "--num-pairs")
    tokenleap(*arguments, 20_000)
    stages.calls.clear()
    save_checkpoint(tmp_path / "student" / "checkpoints", Checkpoint(5, {}, {}, {"pairs": 20_000}))
    result = tokenleap(*arguments, 30_000, code=2)
    assert "pairs.num_pairs: found 20000, requested 30000" in result.stderr
    assert f"`tokenleap generate {tmp_path}/config.toml --out {tmp_path}/pairs --num-pairs 30000`" in result.stderr
    assert f"`tokenleap distill {tmp_path}/config.toml --pairs {tmp_path}/pairs --out NEW`" in result.stderr
    assert stages.calls == []
    tokenleap(*arguments, 20_000)


def test_the_reason_of_a_stop_is_reported_even_if_its_time_cannot_be_written(
    tokenleap: Command, stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.run

    def refuse(*arguments: Any) -> None:
        raise Failed("no space left for seconds.json")

    monkeypatch.setattr(pipeline.run, "add_seconds", refuse)
    stages.stop_in = "train"
    stopped = tokenleap("run", "digits", "--out", tmp_path, "--workers", 0, code=1)
    assert "no space left for seconds.json" in stopped.stderr
    stages.stop_in = "generate"
    stopped = tokenleap("run", "digits", "--out", tmp_path, "--workers", 0, code=130)
    assert "12 of 20 steps are done and kept" in stopped.stderr


@pytest.mark.parametrize("phase", ["generate", "train", "evaluate"])
def test_a_stop_prints_the_command_that_resumes(tokenleap: Command, stages: Any, tmp_path: Path, phase: str) -> None:
    arguments = ("run", "digits", "--out", tmp_path, "--workers", 0)
    stages.stop_in = phase
    assert tokenleap(*arguments, code=130).stderr == (
        "tokenleap: stopped: 12 of 20 steps are done and kept. "
        f"Resume with: tokenleap run digits --out {tmp_path} --workers 0\n"
    )
    stages.stop_in = ""
    tokenleap(*arguments)


def test_wall_time_is_summed_over_repeated_commands(tokenleap: Command, stages: Any, tmp_path: Path) -> None:
    tokenleap("run", "digits", "--out", tmp_path, "--workers", 0)
    (tmp_path / "seconds.json").write_text(json.dumps({"pairs": 100.0, "student": 200.0}))
    tokenleap("run", "digits", "--out", tmp_path, "--workers", 0)
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert 100.0 <= seconds["pairs"] < 101.0
    assert 200.0 <= seconds["student"] < 201.0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(tokenleap: Command, stages: Any, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    result = tokenleap("run", "digits", "--out", tmp_path / "closed" / "run", "--workers", 0, code=2)
    assert "Permission denied" in result.stderr


def test_a_file_instead_of_a_folder_is_refused(tokenleap: Command, stages: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = tokenleap("run", "digits", "--out", tmp_path / "file" / "run", "--workers", 0, code=2)
    assert str(tmp_path / "file") in result.stderr


STAGE_THAT_WAITS = """
import os, sys, time
from types import ModuleType
from shards.core.errors import Stopped

def generate(config, root, *, workers, report, should_stop, **more):
    os.kill(os.getpid(), {number})
    for step in range(1000):
        if should_stop():
            raise Stopped(f"{{step}} shards are made and kept")
        time.sleep(0.001)

driver = ModuleType("generate_pairs.generation.generate")
driver.generate, driver.plan_generation = generate, None
driver.refuse_fewer_pairs = lambda config, root: None
sys.modules["generate_pairs.generation.generate"] = driver
from pipeline.cli.main import main
main(["generate", "digits", "--out", "pairs", "--workers", "0"])
"""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_real_signal_ends_the_process_with_its_exit_code(
    run_python: Callable[..., Any], number: signal.Signals, exit_code: int, tmp_path: Path
) -> None:
    ran = run_python("-c", STAGE_THAT_WAITS.format(number=int(number)), folder=tmp_path)
    assert ran.returncode == exit_code
    assert "stopping after this step; press Ctrl-C again to stop at once" in ran.stderr
    assert ran.stderr.endswith(
        "shards are made and kept. Resume with: tokenleap generate digits --out pairs --workers 0\n"
    )
    assert "Traceback" not in ran.stderr
