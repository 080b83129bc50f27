"""The Slurm job of a training; tests/slurm submits it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from generate_pairs.config import ClusterConfig
from pipeline.training_job import SECONDS_BEFORE_THE_END, SECONDS_TO_SAVE, training_job

pytestmark = pytest.mark.quick

Command = Callable[..., Result]


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def launched(script: str) -> list[str]:
    """The words of the command that starts the processes."""
    lines = script.replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if line.startswith("srun ")]
    return shlex.split(line)


def refuse_bad_syntax(script: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_key_is_in_the_script() -> None:
    config = ClusterConfig(
        queue="gpu",
        account="lab",
        walltime="10:00:00",
        cores=4,
        memory="32GB",
        gpus=1,
        log_folder="/shared/my logs",
        prologue=("module load cuda", "export A=1"),
        directives=("--constraint=a100",),
    )
    script = training_job(config, "tokenleap distill digits --pairs pairs --out students/digits", 2, 8)
    assert directives(script) == [
        "--job-name=tokenleap-distill",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=32",
        "--gpus-per-node=8",
        "--mem=244141M",
        "--time=10:00:00",
        "--partition=gpu",
        "--account=lab",
        "--output='/shared/my logs/tokenleap-distill-%j.log'",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{SECONDS_BEFORE_THE_END}",
        "--constraint=a100",
    ]
    lines = script.splitlines()
    begun = next(number for number, line in enumerate(lines) if line.startswith("srun "))
    assert lines.index("module load cuda") < lines.index("export A=1") < begun
    assert {"--nnodes=2", "--nproc-per-node=8", "--cpus-per-task=32"} <= set(launched(script))
    assert lines.index(f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SECONDS_TO_SAVE}") < begun
    assert SECONDS_TO_SAVE < SECONDS_BEFORE_THE_END
    refuse_bad_syntax(script)


@pytest.mark.parametrize(
    ("memory", "processes", "expected"),
    [("16GiB", 1, "16384M"), ("1.5GB", 2, "2862M"), ("512 MB", 1, "489M"), ("2000kB", 1, "2M")],
)
def test_memory_is_given_in_a_unit_of_slurm(memory: str, processes: int, expected: str) -> None:
    script = training_job(ClusterConfig(memory=memory), "tokenleap distill digits", 1, processes)
    assert f"--mem={expected}" in directives(script)


def test_without_gpus_queue_and_account_none_are_requested() -> None:
    script = training_job(ClusterConfig(), "tokenleap distill digits", 1, 1)
    assert not [each for each in directives(script) if "gpu" in each or "partition" in each or "account" in each]
    assert "--output=./tokenleap-distill-%j.log" in directives(script)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["--print-job-script", "--nodes", "2"], ["--processes=8"]),
        (["--processes", "8", "--nodes=2"], ["--print-job-script"]),
    ],
)
def test_the_script_runs_the_command_without_the_script_options(
    tokenleap: Command, tmp_path: Path, before: list[str], after: list[str]
) -> None:
    words = ["--pairs", "my pairs; rm -rf $HOME", "--out", "it's/here", "--set", 'cluster.prologue=["true"]']
    result = tokenleap("distill", "digits", *before, *words, *after)
    assert "true" in result.output.splitlines()
    refuse_bad_syntax(result.output)
    again = launched(result.output)
    assert again[-1] == "&"
    assert again[again.index("--no-python") + 1 : -1] == ["tokenleap", "distill", "digits", *words]
    assert {"--nnodes=2", "--nproc-per-node=8"} <= set(again)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--nodes", "--processes"])
def test_job_options_without_a_job_script_are_refused(tokenleap: Command, pairs: Path, option: str) -> None:
    result = tokenleap("distill", "digits", "--pairs", pairs, "--out", pairs.parent / "out", option, "2", code=2)
    assert "--print-job-script" in result.output
    assert "torchrun --nproc-per-node=" in result.output
