"""The Slurm job script; tests/slurm submits it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from generate_pairs.cluster.slurm import job_script, slurm_cluster
from generate_pairs.config import ClusterConfig, walltime_seconds
from shards.core.errors import Refused

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:00:05", 5), ("3:50:00", 13_800), ("100:00:00", 360_000), ("2-01:00:10", 176_410)],
)
def test_walltimes_have_the_format_of_slurm(text: str, seconds: int) -> None:
    assert walltime_seconds(text) == seconds


def test_the_script_contains_every_key(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs the extra slurm")
    config = ClusterConfig(
        scheduler="slurm",
        queue="gpu",
        account="lab",
        walltime="10:00:00",
        cores=4,
        memory="32GB",
        gpus=1,
        prologue=("module load cuda", "export A=1"),
        directives=("--constraint=a100",),
        worker_arguments=("--local-directory", "/scratch"),
        interface="lo",
    ).with_log_folder(tmp_path / "pairs")
    script = job_script(config)
    for line in (
        "#SBATCH -p gpu",
        "#SBATCH -A lab",
        "#SBATCH -t 10:00:00",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=30G",
        "#SBATCH --gres=gpu:1",
        f"#SBATCH --output={tmp_path}/pairs/logs/slurm-%j.log",
        "#SBATCH --constraint=a100",
        "module load cuda",
        "export A=1",
    ):
        assert line in script.splitlines()
    # The worker exits half an hour before its ten hours end; the configured arguments come last and override.
    assert "--nthreads 1 --memory-limit 0 --lifetime 34200s --local-directory /scratch --interface lo" in script
    assert list(tmp_path.iterdir()) == []


def test_without_dask_jobqueue_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(Refused, match=r"pip install '\.\[slurm\]'"):
        job_script(ClusterConfig(scheduler="slurm").with_log_folder(tmp_path))


def test_without_slurm_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = ClusterConfig(scheduler="slurm").with_log_folder(tmp_path)
    with pytest.raises(Refused, match="sbatch was not found"), slurm_cluster(config, 1):
        pass


def test_a_job_that_slurm_rejects_is_refused_with_its_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs the extra slurm")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: gpus' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    config = ClusterConfig(scheduler="slurm", interface="lo").with_log_folder(tmp_path / "pairs")
    with pytest.raises(Refused, match="invalid partition specified: gpus"), slurm_cluster(config, 1):
        pass
    assert not (tmp_path / "pairs").exists()
