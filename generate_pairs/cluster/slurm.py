"""Workers as Slurm jobs, through dask-jobqueue: what is submitted, and keeping their number."""

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
"""Before its walltime ends a worker leaves by itself: the greater of the two, the second of the walltime."""


def job_script(config: ClusterConfig) -> str:
    """The script of one job as it would be submitted; submits nothing.

    Args:
        config: with its log folder decided, see `ClusterConfig.logging_into`.

    Raises:
        Refused: dask-jobqueue is not installed, or the scheduler cannot listen where it is told to.
    """
    with _cluster(config) as cluster:
        return str(cluster.job_script())


@contextmanager
def slurm_cluster(config: ClusterConfig, jobs: int) -> Iterator[Any]:
    """A Dask cluster of so many jobs; one that is lost is replaced as long as the block runs.

    Raises:
        Refused: as `job_script`, or Slurm is not here, or would not take the job.
    """
    if shutil.which("sbatch") is None:
        raise Refused(
            "cluster.scheduler is slurm, but there is no sbatch here: run this where jobs are submitted"
        )
    with _cluster(config) as cluster:
        _refuse_impossible(str(cluster.job_script()))
        Path(str(config.log_folder)).mkdir(parents=True, exist_ok=True)
        # scale() would leave the place of a lost job empty.
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        yield cluster


@contextmanager
def _cluster(config: ClusterConfig) -> Iterator[Any]:
    """A scheduler in this process, and no job yet."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise Refused("Slurm jobs need dask-jobqueue: pip install '.[slurm]'") from error

    where = {"host": config.host} if config.host else {}
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
            scheduler_options={**dashboard_options(), **where},
            job_script_prologue=list(config.prologue),
            job_extra_directives=[*([f"--gres=gpu:{config.gpus}"] if config.gpus else []), *directives],
            worker_extra_args=_worker_arguments(config),
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise Refused(
            f"no scheduler for Slurm jobs could be started: {error}; cluster.host and cluster.interface say where "
            "it listens"
        ) from error
    with cluster:
        yield cluster


def _worker_arguments(config: ClusterConfig) -> list[str]:
    """Options of `dask worker`, which come after dask-jobqueue's own and win over them."""
    walltime = walltime_seconds(config.walltime)
    lifetime = walltime - max(SPARE_SECONDS, round(SPARE_SHARE * walltime))
    leaves = ["--lifetime", f"{lifetime}s"] if lifetime > 0 else []
    # Slurm watches the memory; Dask would pause a worker that has much of it in use, without a word.
    return ["--nthreads", "1", "--memory-limit", "0", *leaves, *config.worker_arguments]


def _refuse_impossible(script: str) -> None:
    """Confirms that Slurm would take a job.

    Raises:
        Refused: it would not; says why in Slurm's words.
    """
    tried = subprocess.run(
        ["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False
    )
    if tried.returncode:
        raise Refused(
            f"Slurm does not take the job: {tried.stderr.strip()}. The keys of [cluster] make it, and "
            "--print-job-script shows it"
        )
