"""A short chaos: a few generations killed and let down by their file system end as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="faults are told their files by /proc: Linux only"
)
def test_generations_end_in_the_same_bytes_whatever_is_done_to_them(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/chaos.py",
        "--runs",
        "3",
        "--seed",
        "2",
        "--work",
        tmp_path / "chaos",
    ]
    # Not forked from here: the processes of the suite have threads.
    ended = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    totals = [
        int(cell) for cell in ended.stdout.split("| all |")[1].splitlines()[0].split("|") if cell.strip()
    ]
    tries, drivers_killed, workers_killed, faults = totals
    assert tries >= 3
    assert drivers_killed + workers_killed + faults > 0
