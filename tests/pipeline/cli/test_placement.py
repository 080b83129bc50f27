"""Where `tokenleap generate` runs: valid combinations of options and their effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from pipeline.config.run_config import compose

pytestmark = pytest.mark.quick

Command = Callable[..., Result]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task-index", 1], "--task-index and --task-count: give both"),
        (["--task-count", 4], "--task-index and --task-count: give both"),
        (["--task-index", 4, "--task-count", 4], "--task-index is 4, --task-count 4: the index is 0 to 3"),
        (["--task-index", 0, "--task-count", 4, "--workers", 2], "a task generates its shards in its own process"),
        (["--task-index", 0, "--task-count", 4, "--cluster", "slurm"], "a task generates its shards in its own process"),
        (
            ["--cluster", "slurm", "--workers", 2],
            "--workers starts processes on this machine, and cluster.scheduler is slurm",
        ),
        (["--cluster", "pbs"], "cluster.scheduler cannot be 'pbs'"),
        (["--cluster", "tcp://host"], "cluster.scheduler cannot be 'tcp://host'"),
        (["--time-limit", "4h"], "--time-limit is '4h': write H:MM:SS, as in 3:50:00"),
        (["--print-job-script"], "--print-job-script prints a Slurm job: give --cluster slurm"),
    ],
)
def test_conflicting_options_are_refused_first(
    tokenleap: Command, tmp_path: Path, flags: list[Any], message: str
) -> None:
    assert message in tokenleap("generate", "digits", "--out", tmp_path / "pairs", *flags, code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_job_script_is_printed_and_nothing_written(tokenleap: Command, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs the extra slurm")
    settings = ["--cluster", "slurm", "--set", "cluster.interface=lo", "--set", "cluster.walltime=12:00:00"]
    result = tokenleap("generate", "digits", "--out", tmp_path / "pairs", *settings, "--print-job-script")
    assert result.stdout.startswith("#!/usr/bin/env bash")
    assert "#SBATCH -t 12:00:00" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_lines_of_text_are_a_list() -> None:
    settings = ["cluster.prologue=module load cuda", 'cluster.directives=["--a=1,2", "--b"]']
    cluster = compose("digits", settings).cluster
    assert cluster.prologue == ("module load cuda",)
    assert cluster.directives == ("--a=1,2", "--b")
