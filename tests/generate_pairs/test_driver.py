"""Stage one's contract: the same bytes however they are made, and nothing made twice or lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from generate_pairs import driver
from generate_pairs.config import GenerateConfig
from generate_pairs.driver import generate, plan_generation, repair
from generate_pairs.teachers.checkpoints import load_teacher, save_teacher
from shards.errors import Failed, Refused, Stopped
from shards.manifest import Manifest
from shards.verify import verify

REPORT = lambda *_: None  # noqa: E731
NEVER = lambda: False  # noqa: E731


def config_for(teacher: Path, guidance_scale: float = 1.5, **pairs: object) -> GenerateConfig:
    settings = {
        "num_pairs": 96,
        "pairs_per_shard": 32,
        "batch_size": 16,
        "seed": 3,
        "solver_steps": 16,
    } | pairs
    return GenerateConfig.model_validate(
        {"teacher": {"name": str(teacher), "guidance_scale": guidance_scale}, "pairs": settings}
    )


def shard_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "shards").glob("[!.]*"))}


def row_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "manifest").glob("[!.]*"))}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_do_not_depend_on_the_workers(
    pairs_root: Path, teacher_path: Path, tmp_path: Path, workers: int
) -> None:
    generate(config_for(teacher_path), tmp_path, workers=workers, report=REPORT, should_stop=NEVER)
    assert shard_files(tmp_path) == shard_files(pairs_root)
    assert verify(tmp_path) == []


def test_a_set_of_fewer_pairs_is_the_beginning_of_a_larger_one(
    pairs_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    generate(config_for(teacher_path, num_pairs=20), tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    small = shard_files(tmp_path)
    rows = row_files(tmp_path)
    assert len(small) == 2
    summary = generate(config_for(teacher_path), tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    assert summary.num_shards_made == 2
    assert shard_files(tmp_path) == shard_files(pairs_root)
    assert {name: row_files(tmp_path)[name] for name in rows} == rows
    assert small.items() <= shard_files(tmp_path).items()


def test_finished_shards_are_not_made_again(pairs_root: Path, teacher_path: Path) -> None:
    before = row_files(pairs_root)
    summary = generate(config_for(teacher_path), pairs_root, workers=0, report=REPORT, should_stop=NEVER)
    assert summary.num_shards_made == 0
    assert row_files(pairs_root) == before


def test_asked_to_stop_it_keeps_what_is_done_and_goes_on(
    pairs_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped, match="1 of 4 missing shards"):
        generate(config_for(teacher_path), tmp_path, workers=0, report=REPORT, should_stop=lambda: True)
    assert len(Manifest.open(tmp_path).rows) == 1
    generate(config_for(teacher_path), tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    assert shard_files(tmp_path) == shard_files(pairs_root)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_any_moment_it_completes_what_is_missing(
    pairs_root: Path, teacher_path: Path, tmp_path: Path, workers: int
) -> None:
    """SIGKILL the driver, three times, each a little later; rows that were committed stay as they are."""
    arguments = ["-m", "pipeline.cli", "generate", "preset.toml", "--out", "pairs", "--workers", str(workers)]
    config = config_for(teacher_path)
    (tmp_path / "preset.toml").write_text(
        f'[teacher]\nname = "{config.teacher.name}"\nguidance_scale = 1.5\n[pairs]\nnum_pairs = 96\n'
        "pairs_per_shard = 32\nbatch_size = 16\nseed = 3\nsolver_steps = 16\n"
    )
    root = tmp_path / "pairs"
    rows: dict[str, bytes] = {}
    for wanted in (0, 1, 3):
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_until(lambda wanted=wanted: len(row_files(root)) >= wanted, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert rows.items() <= row_files(root).items()
        rows = row_files(root)
    finished = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert rows.items() <= row_files(root).items()
    assert shard_files(root) == shard_files(pairs_root)
    assert verify(root) == []


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not is_true() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_pairs_of_other_settings_are_refused_by_name(pairs_root: Path, teacher_path: Path) -> None:
    before = shard_files(pairs_root)
    with pytest.raises(Refused, match=r"guidance_scale: 1\.5 -> 2\.5"):
        generate(config_for(teacher_path, 2.5), pairs_root, workers=0, report=REPORT, should_stop=NEVER)
    with pytest.raises(Refused, match="seed: 3 -> 4"):
        plan_generation(config_for(teacher_path, seed=4), pairs_root)
    assert shard_files(pairs_root) == before


def test_planning_writes_nothing(teacher_path: Path, tmp_path: Path) -> None:
    plan = plan_generation(config_for(teacher_path), tmp_path / "pairs")
    assert plan.missing == (0, 1, 2, 3)
    assert plan.num_training_pairs == 96
    assert list(tmp_path.iterdir()) == []


def test_one_unit_that_fails_does_not_stop_the_others(
    teacher_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = driver.make_shard

    def breaks_on_two(root, spec, config, unit):
        if unit.shard_index == 2:
            raise OSError(28, "No space left on device")
        return real(root, spec, config, unit)

    monkeypatch.setattr(driver, "make_shard", breaks_on_two)
    with pytest.raises(Failed, match=r"1 of 4 shards .* could not be made.*No space left"):
        generate(config_for(teacher_path), tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    assert Manifest.open(tmp_path).missing(4) == (2,)


def test_repair_makes_damaged_and_missing_shards_again(
    pairs_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    generate(config_for(teacher_path), tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    damaged = tmp_path / "shards" / "pairs-000001.tar"
    content = bytearray(damaged.read_bytes())
    content[5000] ^= 8
    damaged.write_bytes(content)
    (tmp_path / "manifest" / "pairs-000002.parquet").unlink()
    assert {finding.kind for finding in verify(tmp_path)} >= {"broken", "missing"}
    summary = repair(tmp_path, str(teacher_path), workers=0, report=REPORT, should_stop=NEVER)
    assert summary.num_shards_made == 2
    assert shard_files(tmp_path) == shard_files(pairs_root)
    assert verify(tmp_path) == []


def test_repair_refuses_another_teacher(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    loaded = load_teacher(str(teacher_path))
    save_teacher(loaded.teacher, loaded.family, other, {"data": "other"}, torch.float32)
    rows = row_files(pairs_root)
    with pytest.raises(Refused, match="not the teacher that made"):
        repair(pairs_root, str(other), workers=0, report=REPORT, should_stop=NEVER)
    assert row_files(pairs_root) == rows


def test_ctrl_c_in_a_terminal_stops_in_order(teacher_path: Path, tmp_path: Path) -> None:
    """SIGINT reaches the whole process group, workers too; the command ends by itself and says how to go on."""
    (tmp_path / "preset.toml").write_text(
        f'[teacher]\nname = "{teacher_path}"\nguidance_scale = 1.5\n[pairs]\nnum_pairs = 20000\n'
        "pairs_per_shard = 32\nbatch_size = 16\n"
    )
    arguments = ["-m", "pipeline.cli", "generate", "preset.toml", "--out", "pairs", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    wait_until(lambda: len(row_files(tmp_path / "pairs")) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "missing shards are made and kept" in told
    assert "Go on with: onestep generate preset.toml" in told
    assert verify(tmp_path / "pairs") == []
