"""Forks the processes of a training from one that has loaded torch, ten times as fast as torchrun starts them.

Each line of standard input requests one training as JSON: `arguments` of `tokenleap`, `processes`, the folder `log`, and
optionally the rank that sends itself SIGTERM (`signalled`) or fails in the next step (`failing`) after `after` steps.
When all processes have ended, their exit codes are printed in one line. The folder contains the output of each process
(`0.out`, `0.err`) and the pairs of its batches (`0.pairs`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch._dynamo  # loaded here because building a network on the meta device needs it, which takes seconds

import distill.training.trainer  # noqa: F401
import pipeline.config.run_config  # noqa: F401
from distill.training.state import Training
from pipeline.cli.main import main
from shards.core.errors import Failed
from shards.streaming.batches import PairBatch
from shards.streaming.stream import PairStream

PATIENCE_SECONDS = 60.0
HUNG = -1
"""Exit code reported for a process that had to be killed."""


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def record_batches(path: Path) -> None:
    """Make streams write one line for each batch: the global batch size, then the pairs of this process."""
    real = PairStream.__next__

    def recorded(stream: PairStream) -> PairBatch:
        batch = real(stream)
        with path.open("a") as file:
            print(stream.batch_size, *batch.index_B.tolist(), file=file)
        return batch

    PairStream.__next__ = recorded


def signal_after(steps: int) -> None:
    """Make this process send itself SIGTERM after `steps` steps."""
    real = Training.update

    def update(training: Training) -> dict[str, torch.Tensor]:
        values = real(training)
        if training.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    Training.update = update


def fail_after(steps: int) -> None:
    """Make this process fail with damaged pairs after `steps` steps."""
    real = Training.update

    def update(training: Training) -> dict[str, torch.Tensor]:
        if training.step == steps:
            raise Failed("pairs-000002.tar is damaged")
        return real(training)

    Training.update = update


def run_rank(rank: int, port: int, request: dict[str, Any]) -> NoReturn:
    """Run one rank of a training in a forked process, and exit with its exit code."""
    log, size = Path(request["log"]), request["processes"]
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(log / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    if size > 1:
        names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        os.environ.update({name: str(number) for name, number in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    record_batches(log / f"{rank}.pairs")
    if rank == request.get("signalled"):
        signal_after(request["after"])
    if rank == request.get("failing"):
        fail_after(request["after"])
    code: Any = 70
    try:
        main(request["arguments"])
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def codes_of(children: list[int]) -> list[int]:
    """Wait for processes and return their exit codes; those that do not end are killed."""
    deadline, ended = time.monotonic() + PATIENCE_SECONDS, dict[int, int]()
    while len(ended) < len(children):
        for child in set(children) - ended.keys():
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                ended[child] = HUNG
            elif (status := os.waitpid(child, os.WNOHANG)) != (0, 0):
                ended[child] = os.waitstatus_to_exitcode(status[1])
        time.sleep(0.01)
    return [ended[child] for child in children]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        request, port, children = json.loads(line), free_port(), list[int]()
        for rank in range(request["processes"]):
            children.append(os.fork())
            if children[-1] == 0:
                run_rank(rank, port, request)
        print(json.dumps(codes_of(children)), flush=True)
