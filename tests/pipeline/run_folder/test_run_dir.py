"""A run continues only with the settings it started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.run_config import RunConfig, compose, to_toml
from pipeline.run_folder.results import read_metrics
from pipeline.run_folder.run_dir import RunDir, check, claim, environment
from shards.core.errors import Refused
from shards.storage.files import commit_bytes

pytestmark = pytest.mark.quick

SIZES = ["pairs.num_pairs=20000", "train.num_steps=2000"]


def test_the_first_use_writes_configuration_and_environment(tmp_path: Path) -> None:
    config = compose("digits")
    run_dir = claim(tmp_path / "run", config)
    assert run_dir.read_config() == config
    recorded = json.loads(run_dir.environment.read_text())
    assert recorded["host"]
    assert recorded["packages"]["torch"]


def test_equal_settings_continue_without_a_write(tmp_path: Path) -> None:
    run_dir = claim(tmp_path, compose("digits"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    claim(tmp_path, compose("digits"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert sorted(before) == [run_dir.config, run_dir.environment]


def test_of_two_concurrent_starts_the_settings_written_first_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = compose("digits"), compose("digits", ["train.seed=1"])
    checked_by_second: list[Path] = []

    def slow_check(out: Path, config: RunConfig) -> RunDir:
        found = check(out, config)
        if not checked_by_second:
            # The other process claims the folder between the check and the write of this one.
            checked_by_second.append(out)
            commit_bytes(found.config, to_toml(first).encode())
        return found

    monkeypatch.setattr("pipeline.run_folder.run_dir.check", slow_check)
    with pytest.raises(Refused, match=r"train\.seed: found 0, requested 1"):
        claim(tmp_path, second)
    assert RunDir(tmp_path).read_config() == first


def test_a_damaged_log_is_refused_with_its_name(tmp_path: Path) -> None:
    log = tmp_path / "metrics.parquet"
    log.write_bytes(b"PAR1 and no more")
    with pytest.raises(Refused, match=r"metrics\.parquet is damaged: delete it"):
        read_metrics(log)


@pytest.mark.parametrize(
    "override",
    ["pairs.num_pairs=30000", "train.num_steps=2001", "pairs.batch_size=7", "train.log_interval=3", "description=new"],
)
def test_free_settings_may_change_and_upward_ones_grow(tmp_path: Path, override: str) -> None:
    claim(tmp_path, compose("digits", SIZES))
    changed = compose("digits", [*SIZES, override])
    assert claim(tmp_path, changed).read_config() == changed


def test_each_other_change_is_refused_with_its_key(tmp_path: Path) -> None:
    run_dir = claim(tmp_path, compose("digits", [*SIZES, "teacher.guidance_scale=1.5"]))
    overrides = [
        "pairs.num_pairs=20000",
        "teacher.guidance_scale=3",
        "train.num_steps=10",
        "student.timesteps=0",
    ]
    with pytest.raises(Refused) as refused:
        claim(tmp_path, compose("digits", overrides))
    message = str(refused.value)
    assert str(tmp_path) in message
    assert "teacher.guidance_scale: found 1.5, requested 3.0" in message
    assert "train.num_steps: found 2000, requested 10 (it may only grow)" in message
    assert "student.timesteps: found 0,8, requested 0" in message
    assert "Give the stored values to continue it, or another --out" in message
    assert "train.seed" not in message
    assert run_dir.read_config() == compose("digits", [*SIZES, "teacher.guidance_scale=1.5"])


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Refused, match=r"contains thesis\.tex: give another --out"):
        check(tmp_path, compose("digits"))


def test_existing_pairs_and_files_of_a_killed_writer_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / ".config.toml.1.abc.tmp").touch()
    claim(tmp_path, compose("digits"))


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check(tmp_path / "new", compose("digits"))
    assert list(tmp_path.iterdir()) == []


def test_the_recorded_environment_contains_no_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENLEAP_SECRET", "hush-hush")
    assert "hush-hush" not in json.dumps(environment())
