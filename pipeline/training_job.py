"""The Slurm job of a training: one process per GPU, stopped before the time limit and requeued until it is done."""

from __future__ import annotations

import math
import shlex

from dask.utils import parse_bytes

from generate_pairs.config import ClusterConfig

SECONDS_BEFORE_THE_END = 300
"""How long before the time limit Slurm sends SIGUSR1: enough for a step and a checkpoint."""
SECONDS_TO_SAVE = 240
"""How long torchrun waits for its processes after SIGTERM; its default kills them after 30 seconds."""
PORT = 29500
"""Rendezvous port on the first node; torchrun's default."""


def training_job(cluster: ClusterConfig, command: str, nodes: int, processes: int) -> str:
    """The script of a job that runs a `distill` command under torchrun, with `processes` on each node.

    `cores`, `memory` and `gpus` of `cluster` are those of one process. `command` is the whole command line, including
    the options that print this script.
    """
    gpus = [f"--gpus-per-node={processes}"] if cluster.gpus else []
    cores = cluster.cores * processes
    log = f"{cluster.log_folder or '.'}/tokenleap-distill-%j.log"
    directives = [
        "--job-name=tokenleap-distill",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cores}",
        *gpus,
        f"--mem={math.ceil(parse_bytes(cluster.memory) * processes / 2**20)}M",
        f"--time={cluster.walltime}",
        *([f"--partition={cluster.queue}"] if cluster.queue else []),
        *([f"--account={cluster.account}"] if cluster.account else []),
        f"--output={shlex.quote(log)}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{SECONDS_BEFORE_THE_END}",
        *cluster.directives,
    ]
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {directive}" for directive in directives),
        *cluster.prologue,
        "",
        "# Before the time limit every process saves and ends; then the job is requeued.",
        "requeue=0",
        "trap 'requeue=1; scancel --signal=TERM \"$SLURM_JOB_ID\"' USR1",
        "",
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SECONDS_TO_SAVE}",
        # A Slurm step does not inherit --cpus-per-task from its job.
        f"srun --cpus-per-task={cores} torchrun \\",
        f'    --nnodes={nodes} --nproc-per-node={processes} --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \\',
        f'    --rdzv-endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):{PORT}" \\',
        f"    --no-python {shlex.join(_without_job_options(shlex.split(command)))} &",
        "",
        "# A trapped signal interrupts `wait` while the process still runs.",
        "training=$!",
        'while kill -0 "$training" 2>/dev/null; do wait "$training"; status=$?; done',
        'if [ "$requeue" = 1 ] && [ "$status" != 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$status"',
    ]
    return "\n".join(lines)


def _without_job_options(words: list[str]) -> list[str]:
    """A command line without the options of the job script."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("--nodes", "--processes"):
            next(rest)
        elif word != "--print-job-script" and not word.startswith(("--nodes=", "--processes=")):
            kept.append(word)
    return kept
