"""The device of a worker process, and the default number of workers of a machine."""

from __future__ import annotations

import os
import socket

import torch

from shards.core.errors import Refused
from shards.core.host import available_cores


def chosen_device(requested: str, option: str = "cluster.device") -> str:
    """The device of this process, `cpu` or `cuda`; `auto` chooses a GPU if torch finds one.

    Raises:
        Refused: a GPU is requested and torch finds none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise Refused(
            f"{option} is cuda, but torch finds no GPU on {socket.gethostname()}: request machines with a GPU, or "
            f"set {option}=cpu"
        )
    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return requested


def visible_gpus() -> tuple[str, ...]:
    """The name in CUDA_VISIBLE_DEVICES of each GPU that this process may use."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    # torch ignores all names after the first invalid one.
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


def worker_environment(device: str, worker: int) -> dict[str, str]:
    """Environment variables that give worker number `worker` of this machine one GPU of its own."""
    gpus = () if chosen_device(device) == "cpu" else visible_gpus()
    return {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {}


def default_workers(device: str = "auto") -> int:
    """One worker for each GPU, or for each usable core if the device is the CPU; Refused as by `chosen_device`."""
    return len(visible_gpus()) if chosen_device(device) == "cuda" else available_cores()
