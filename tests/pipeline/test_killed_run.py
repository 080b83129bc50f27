"""A killed run resumes to the same bytes as an uninterrupted one and repeats no finished work."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from distill.training.metrics import CLOCK_COLUMNS

NUM_SHARDS = 6
CHECKPOINTS = 4
PRESET = f"""
[teacher]
name = "{{teacher}}"
guidance_scale = 1.5
[pairs]
num_pairs = {(NUM_SHARDS - 1) * 50}
pairs_per_shard = 50
batch_size = 25
solver_steps = 16
[student]
timesteps = [0]
split = 16
[train]
num_steps = {CHECKPOINTS * 20}
batch_size = 16
checkpoint_interval = 20
log_interval = 7
[evaluation]
num_images = 100
"""


def committed_rows(out: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of writing of every manifest row."""
    paths = (out / "pairs" / "manifest").glob("[!.]*.parquet")
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def results(out: Path) -> dict[str, bytes]:
    """The shards and the student's export."""
    export = [out / "student" / name for name in ("student.safetensors", "tokenizer.safetensors", "config.json")]
    shards = sorted((out / "pairs" / "shards").glob("[!.]*.tar"))
    return {path.name: path.read_bytes() for path in [*shards, *export]}


def training_log(out: Path) -> dict[str, list[Any]]:
    """The training log without its times."""
    return pyarrow.parquet.read_table(out / "metrics.parquet").drop_columns(CLOCK_COLUMNS).to_pydict()


def scores(out: Path) -> list[dict[str, Any]]:
    """The evaluation without its timings."""
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_a_run_killed_in_every_phase_resumes_to_the_same_bytes(
    brief_tokenleap: list[str],
    teacher_path: Path,
    run_python: Callable[..., Any],
    run_and_kill: Callable[..., None],
    tmp_path: Path,
) -> None:
    preset = tmp_path / "tiny.toml"
    preset.write_text(PRESET.format(teacher=teacher_path))
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    command = [*brief_tokenleap, "run", preset, "--workers", 0, "--out"]
    ran = run_python(*command[1:], uninterrupted)
    assert ran.returncode == 0, ran.stderr
    generator = random.Random(0)
    shards, checkpoint = generator.randint(1, NUM_SHARDS - 3), 20 * generator.randint(1, CHECKPOINTS - 2)
    evaluating = json.loads((uninterrupted / "seconds.json").read_text())["evaluation"]
    moments: list[tuple[Callable[[], bool], float]] = [
        (lambda: len(committed_rows(killed)) >= shards, 0.0),
        ((killed / "student" / "checkpoints" / f"step-{checkpoint:06d}.json").exists, 0.0),
        ((killed / "metrics.parquet").exists, generator.uniform(0.0, 0.3) * evaluating),
    ]
    rows: dict[str, tuple[bytes, int]] = {}
    for moment, delay in moments:
        run_and_kill([*command, killed], tmp_path / "killed.log", moment, delay)
        assert rows.items() <= committed_rows(killed).items()
        rows = committed_rows(killed)
        assert not (killed / "evaluation.json").exists()
    ran = run_python(*command[1:], killed)
    assert ran.returncode == 0, ran.stderr

    assert rows.items() == committed_rows(killed).items()
    assert len(rows) == NUM_SHARDS
    assert results(killed) == results(uninterrupted)
    assert len(results(uninterrupted)) == NUM_SHARDS + 3
    assert training_log(killed) == training_log(uninterrupted)
    assert training_log(uninterrupted)["step"][-1] == CHECKPOINTS * 20
    assert scores(killed) == scores(uninterrupted)
