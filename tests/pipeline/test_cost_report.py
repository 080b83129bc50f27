"""`tokenleap plan` and `generate --probe`: exact bytes, measured rates, and estimates marked as such."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from generate_pairs.teachers.checkpoints import embedded_names
from pipeline.config.run_config import compose, presets

Command = Callable[..., Result]


@pytest.fixture
def preset(teacher_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(
        f'[teacher]\nname = "{teacher_path}"\nguidance_scale = 1.5\n[pairs]\nnum_pairs = 96\n'
        "pairs_per_shard = 32\nbatch_size = 12\nseed = 3\nsolver_steps = 16\n"
    )
    return path


def test_a_probe_stores_its_rate_and_writes_no_pairs(
    tokenleap: Command, preset: Path, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pairs"
    result = tokenleap("generate", preset, "--out", out, "--probe")
    assert "0 shards are done, 4 to make" in result.stdout
    (path,) = (home / "probes").iterdir()
    assert result.stdout.endswith(f"stored in {path}\n")
    probe = json.loads(path.read_text())
    # The first batch is not measured: batches of 12 and 8 of the first shard and 12 of the second are.
    assert (probe["num_batches"], probe["num_pairs"], probe["batch_size"]) == (3, 32, 12)
    assert path.name.startswith(f"{probe['fingerprint']}-cpu-")
    rate = probe["num_pairs"] / probe["seconds"]
    hours = 128 / rate / 3600
    text = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    assert f"{text} pairs/s at batch 12, {hours:.3g} device-hours, measured by a probe of 3 batches" in result.stdout
    assert not out.exists()


def test_a_probe_counts_the_missing_pairs(tokenleap: Command, preset: Path, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    tokenleap("generate", preset, "--out", out, "--workers", 0)
    rows = sorted((out / "manifest").iterdir())
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert " 0 device-hours, measured" in tokenleap("generate", preset, "--out", out, "--probe").stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    rows[2].unlink()
    assert "3 shards are done, 1 to make" in tokenleap("generate", preset, "--out", out, "--probe").stdout


def test_a_plan_uses_the_rate_of_a_stored_probe(tokenleap: Command, preset: Path, home: Path, tmp_path: Path) -> None:
    before = tokenleap("plan", preset, "--device", "h100")
    assert "no probe of these settings is stored:" in before.stdout
    tokenleap("generate", preset, "--out", tmp_path / "pairs", "--probe")
    (path,) = (home / "probes").iterdir()
    probe = json.loads(path.read_text()) | {"seconds": 32 / 50, "device": "GPU of mine"}
    path.write_text(json.dumps(probe))
    result = tokenleap("plan", preset, "--num-pairs", 1_799_968, "--device", "h100")
    assert "GPU of mine: 50 pairs/s at batch 12, 10 device-hours, measured by a probe of 3 batches" in result.stdout
    other = tokenleap("plan", preset, "--set", "teacher.top_k=3", "--device", "h100")
    assert "no probe of these settings is stored:" in other.stdout
    path.write_text("{}")
    assert f"{path} is not a probe that tokenleap wrote: delete it" in tokenleap("plan", preset, code=2).stderr


def test_a_plan_prints_the_bytes_that_generate_writes(
    tokenleap: Command, preset: Path, home: Path, tmp_path: Path
) -> None:
    lines = tokenleap("plan", preset, "--device", "h100").stdout.splitlines()
    for noise, line in zip(("stored", "counter"), lines[1:3], strict=True):
        out = tmp_path / noise
        tokenleap("generate", preset, "--out", out, "--workers", 0, "--set", f"pairs.noise={noise}")
        size = sum(path.stat().st_size for path in (out / "shards").iterdir())
        assert f"{size / 1e3:.1f} kB in all" in line
        assert line.startswith(f'pairs.noise = "{noise}": ')


@pytest.mark.parametrize("name", presets())
def test_every_preset_can_be_planned_without_its_teacher(tokenleap: Command, home: Path, name: str) -> None:
    result = tokenleap("plan", name, "--num-pairs", 1_200_000, "--device", "a100", "--device", "h100")
    assert result.stdout.startswith("1,200,000 training pairs and 1,000 held out, in 1,201 shards of 1,000\n")
    estimates = [line for line in result.stdout.splitlines() if "estimated (40% of " in line]
    assert [line.split(":")[0] for line in estimates] == ["a100", "h100"]
    is_embedded = compose(name).teacher.name in embedded_names()
    assert ("no probe: the teacher is not imported yet" in result.stdout) != is_embedded
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "digits", "--device", "abacus"], "'abacus' is not one of"),
        (["plan", "digits", "--set", "teacher.name=unknown"], "no teacher is called 'unknown'"),
        (["generate", "digits", "--out", "x", "--probe", "--dry-run"], "give one of them"),
    ],
)
def test_invalid_plans_are_refused(tokenleap: Command, home: Path, arguments: list[Any], message: str) -> None:
    assert message in tokenleap(*arguments, code=2).stderr
