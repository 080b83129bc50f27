"""The Slurm job of a training: as many processes as GPUs, stopped in time, put back into the queue until it is done."""

from __future__ import annotations

import math
import shlex

from dask.utils import parse_bytes

from generate_pairs.config import ClusterConfig

SECONDS_BEFORE_THE_END = 300
"""When Slurm says that the time is nearly up: enough for a step and a checkpoint."""
SECONDS_TO_SAVE = 240
"""How long torchrun waits for processes that were told to end; by itself it would kill them after 30 seconds."""
PORT = 29500
"""Of the first node, where processes of several nodes find each other; torchrun's own default."""


def training_job(cluster: ClusterConfig, command: str, nodes: int, processes: int) -> str:
    """The script of a job that runs a `distill` command under torchrun.

    Args:
        cluster: queue, account, walltime and the like; `cores`, `memory` and `gpus` are a process's.
        command: the whole command line, with what asked for this script.
        nodes: how many.
        processes: on each node.
    """
    again = shlex.join(_without_job_options(shlex.split(command)))
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
        "# Before the time is up every process saves and ends; the job then goes back into the queue.",
        "again=0",
        "trap 'again=1; scancel --signal=TERM \"$SLURM_JOB_ID\"' USR1",
        "",
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SECONDS_TO_SAVE}",
        # A step does not inherit the job's.
        f"srun --cpus-per-task={cores} torchrun \\",
        f'    --nnodes={nodes} --nproc-per-node={processes} --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \\',
        f'    --rdzv-endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):{PORT}" \\',
        f"    --no-python {again} &",
        "",
        "# A trapped signal ends `wait` before its process.",
        "training=$!",
        'while kill -0 "$training" 2>/dev/null; do wait "$training"; status=$?; done',
        'if [ "$again" = 1 ] && [ "$status" != 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$status"',
    ]
    return "\n".join(lines)


def _without_job_options(words: list[str]) -> list[str]:
    """A command line without the options that ask for a script."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("--nodes", "--processes"):
            skip = True
        elif word != "--print-job-script" and not word.startswith(("--nodes=", "--processes=")):
            kept.append(word)
    return kept
