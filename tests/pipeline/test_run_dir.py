"""A run's folder goes on only with the settings it was begun with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import compose
from pipeline.run_dir import check, claim, environment
from shards.errors import Refused


def test_the_first_use_writes_configuration_and_environment(tmp_path: Path) -> None:
    config = compose("digits")
    run_dir = claim(tmp_path / "run", config)
    assert run_dir.read_config() == config
    recorded = json.loads(run_dir.environment.read_text())
    assert recorded["host"]
    assert recorded["packages"]["torch"]


def test_the_same_settings_go_on_without_a_write(tmp_path: Path) -> None:
    run_dir = claim(tmp_path, compose("digits"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    claim(tmp_path, compose("digits"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert sorted(before) == [run_dir.config, run_dir.environment]


@pytest.mark.parametrize(
    "override",
    [
        "pairs.num_pairs=30000",
        "train.num_steps=2001",
        "pairs.batch_size=7",
        "train.log_interval=3",
        "description=new",
    ],
)
def test_free_settings_may_change_and_upward_ones_grow(tmp_path: Path, override: str) -> None:
    claim(tmp_path, compose("digits"))
    changed = compose("digits", [override])
    assert claim(tmp_path, changed).read_config() == changed


def test_other_changes_are_refused_each_by_name(tmp_path: Path) -> None:
    run_dir = claim(tmp_path, compose("digits", ["train.num_steps=2000"]))
    overrides = [
        "teacher.guidance_scale=3",
        "train.num_steps=10",
        "student.timesteps=0",
        "pairs.solver_steps=9",
    ]
    with pytest.raises(Refused) as refused:
        claim(tmp_path, compose("digits", overrides))
    message = str(refused.value)
    assert str(tmp_path) in message
    assert "teacher.guidance_scale: there 1.5, asked 3.0" in message
    assert "train.num_steps: there 2000, asked 10 (it may only grow)" in message
    assert "student.timesteps: there 0,8, asked 0" in message
    assert "pairs.solver_steps: there the default, asked 9" in message
    assert "Give the original values to go on with it, or another --out" in message
    assert "train.seed" not in message
    assert run_dir.read_config() == compose("digits", ["train.num_steps=2000"])


def test_a_folder_with_other_things_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Refused, match=r"holds thesis\.tex: give another --out"):
        check(tmp_path, compose("digits"))


def test_pairs_made_beforehand_and_leftovers_of_a_killed_writer_are_welcome(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / ".config.toml.1.abc.tmp").touch()
    claim(tmp_path, compose("digits"))


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check(tmp_path / "new", compose("digits"))
    assert list(tmp_path.iterdir()) == []


def test_the_environment_holds_no_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESTEP_SECRET", "hush-hush")
    assert "hush-hush" not in json.dumps(environment())
