"""Workers as Slurm jobs, through dask-jobqueue: the job script, and replacing lost jobs."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from generate_pairs.cluster.dask_clusters import dashboard_options
from generate_pairs.config import ClusterConfig, walltime_seconds
from shards.core.errors import Refused

SPARE_SECONDS = 60
SPARE_SHARE = 0.05
"""A worker exits this long before its walltime ends: the greater of the seconds and the share of the walltime."""


def job_script(config: ClusterConfig) -> str:
    """The script of one job; submits nothing. Needs `ClusterConfig.with_log_folder`.

    Raises:
        Refused: dask-jobqueue is not installed, or the scheduler cannot listen at the configured address.
    """
    with _cluster(config) as cluster:
        return str(cluster.job_script())


@contextmanager
def slurm_cluster(config: ClusterConfig, jobs: int) -> Iterator[Any]:
    """A client of a Dask cluster of `jobs` Slurm jobs; lost jobs are replaced for the duration of the block.

    Raises:
        Refused: as `job_script`; or this machine has no Slurm, or Slurm rejects the job.
    """
    from distributed import Client

    if shutil.which("sbatch") is None:
        raise Refused("cluster.scheduler is slurm, but sbatch was not found: run the command on a Slurm login node")
    with _cluster(config) as cluster:
        _test_submission(str(cluster.job_script()))
        Path(str(config.log_folder)).mkdir(parents=True, exist_ok=True)
        # scale() would not replace a lost job.
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        with Client(cluster) as client:
            yield client


@contextmanager
def _cluster(config: ClusterConfig) -> Iterator[Any]:
    """A scheduler in this process, without jobs."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise Refused("Slurm jobs need dask-jobqueue: pip install '.[slurm]'") from error

    listen = {"host": config.host} if config.host else {}
    directives = [f"--output={config.log_folder}/slurm-%j.log", *config.directives]
    try:
        cluster = SLURMCluster(
            job_name="tokenleap-generate",
            queue=config.queue,
            account=config.account,
            walltime=config.walltime,
            cores=config.cores,
            processes=1,
            memory=config.memory,
            interface=config.interface,
            scheduler_options={**dashboard_options(), **listen},
            job_script_prologue=list(config.prologue),
            job_extra_directives=[*([f"--gres=gpu:{config.gpus}"] if config.gpus else []), *directives],
            worker_extra_args=_worker_arguments(config),
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise Refused(
            f"cluster.host, cluster.interface: the scheduler for Slurm jobs did not start: {error}. These keys set "
            "the address at which it listens"
        ) from error
    with cluster:
        yield cluster


def _worker_arguments(config: ClusterConfig) -> list[str]:
    """Options of `dask worker`; they follow dask-jobqueue's own options and override them."""
    walltime = walltime_seconds(config.walltime)
    lifetime = walltime - max(SPARE_SECONDS, round(SPARE_SHARE * walltime))
    lifetime_options = ["--lifetime", f"{lifetime}s"] if lifetime > 0 else []
    # Slurm limits the memory; with its own limit, Dask would silently pause a worker that uses much of it.
    return ["--nthreads", "1", "--memory-limit", "0", *lifetime_options, *config.worker_arguments]


def _test_submission(script: str) -> None:
    """Raise `Refused` with Slurm's reason if Slurm rejects a job."""
    result = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Refused(
            f"Slurm rejects the job: {result.stderr.strip()}. Change the keys of [cluster]; --print-job-script "
            "prints the job"
        )
