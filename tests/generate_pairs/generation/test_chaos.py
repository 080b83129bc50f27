"""A short run of benchmarks/chaos.py: killed workers and file system faults do not change the bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the fault injection reads /proc: Linux only")
def test_kills_and_faults_do_not_change_the_bytes(tmp_path: Path) -> None:
    # A new process, not a fork: the test process has threads.
    ended = subprocess.run(
        [sys.executable, "benchmarks/chaos.py", "--runs", "2", "--seed", "2", "--work", tmp_path / "chaos"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    totals = [int(cell) for cell in ended.stdout.split("| all |")[1].splitlines()[0].split("|") if cell.strip()]
    tries, drivers_killed, workers_killed, faults = totals
    assert tries >= 2
    assert drivers_killed + workers_killed + faults > 0
