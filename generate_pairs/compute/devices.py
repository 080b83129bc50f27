"""Which device a worker computes on, and how many workers a machine has room for."""

from __future__ import annotations

import os
import socket

import torch

from shards.core.errors import Refused
from shards.core.host import available_cores


def chosen_device(asked: str, option: str = "cluster.device") -> str:
    """The device of this process: what was asked for, or a GPU where there is one.

    Args:
        asked: `auto`, `cpu` or `cuda`.
        option: what it was asked by, for the message.

    Raises:
        Refused: it shall be a GPU, and there is none.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise Refused(
            f"{option} is cuda, but torch finds no GPU on {socket.gethostname()}: ask for machines that have one, or "
            f"set {option}=cpu"
        )
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def visible_gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES would call each GPU that this process may use."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    # torch counts up to the first name that is no device.
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


def worker_environment(device: str, worker: int) -> dict[str, str]:
    """The variables that show worker number `worker` of this machine its own GPU, and no other."""
    gpus = () if chosen_device(device) == "cpu" else visible_gpus()
    return {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {}


def default_workers(device: str = "auto") -> int:
    """One worker for every GPU, or for every core that this process may use where it computes on them.

    Raises:
        Refused: as `chosen_device`.
    """
    if chosen_device(device) == "cuda":
        return len(visible_gpus())
    return available_cores()
