"""The processes that train one student together: each takes its share of every batch, and all take the same step.

Sums go through buckets of fixed content and order, so that a training that is resumed adds in the same order as one that
was not. (torch's DistributedDataParallel cuts its buckets anew after the first step of every process.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from shards.core.errors import Failed, Refused

BUCKET_BYTES = 32 * 2**20
"""Gradients that are summed in one message."""
PATIENCE = timedelta(minutes=30)
"""How long one process waits for another, which may be writing a checkpoint."""


CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """Who this process is among those of a training, and how they agree.

    Attributes:
        rank: number of this process.
        size: how many there are.
        device: what this one computes on.
        on_host: how many of them share this host.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    on_host: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Every tensor becomes its sum over all processes, in place; the same shapes in the same order everywhere.

        Raises:
            Failed: another process is gone.
        """
        if self.size == 1:
            return
        with self._together():
            sent = [
                (bucket, torch.cat([tensor.flatten() for tensor in bucket])) for bucket in buckets(tensors)
            ]
            pending = [dist.all_reduce(flat, async_op=True) for _, flat in sent]
            for work, (bucket, flat) in zip(pending, sent, strict=True):
                work.wait()
                parts = flat.split([tensor.numel() for tensor in bucket])
                for tensor, part in zip(bucket, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    def broadcast_from_zero(self, number: int | None) -> int | None:
        """What the first process passes, whatever the others do; None is an answer.

        Raises:
            Failed: another process is gone.
        """
        if self.size == 1:
            return number
        said = torch.tensor([-1 if number is None else number])
        with self._together():
            dist.broadcast(said, src=0)
        return None if said.item() < 0 else int(said.item())

    def all_reduce_min(self, number: int) -> int:
        """The least of what all processes pass.

        Raises:
            Failed: another process is gone.
        """
        if self.size == 1:
            return number
        least = torch.tensor([number])
        with self._together():
            dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return int(least.item())

    def any(self, flag: bool) -> bool:
        """Whether any process passes True.

        Raises:
            Failed: another process is gone.
        """
        return self.all_reduce_min(0 if flag else 1) == 0

    def wait(self) -> None:
        """Go on when all have come here.

        Raises:
            Failed: another process is gone.
        """
        self.all_reduce_min(0)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        # What torch raises when a connection breaks; its text says which.
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise Failed(
                f"this process lost the others ({reason}). The one that ended first says why; "
                "the same command goes on from the last checkpoint"
            ) from error


@contextmanager
def init_distributed(device: str) -> Iterator[World]:
    """The processes that torchrun started, joined while the block lasts; without torchrun, this process alone.

    Args:
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one; of several GPUs each process takes its own.

    Raises:
        Refused: there is no GPU, or more processes on this host than GPUs.
        Failed: the others cannot be reached.
    """
    local_rank, on_host = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    chosen = _device(device, local_rank, on_host)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        # Agreements are small tensors on the CPU, whatever the gradients lie on.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise Failed(f"the processes of this training cannot be joined: {error}") from error
    world = World(dist.get_rank(), dist.get_world_size(), chosen, on_host)
    # Who is refused leaves at once, and takes the meeting place along: not before all have met.
    world.wait()
    yield world
    # Not where the block failed: the others may never come.
    dist.destroy_process_group()


def buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbouring tensors of one dtype together, up to `BUCKET_BYTES`; depends on shapes and dtypes alone."""
    found: list[list[Tensor]] = []
    filled = 0
    for tensor in tensors:
        if not found or tensor.dtype != found[-1][0].dtype or filled + tensor.nbytes > BUCKET_BYTES:
            found.append([])
            filled = 0
        found[-1].append(tensor)
        filled += tensor.nbytes
    return found


def _device(asked: str, local_rank: int, on_host: int) -> torch.device:
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Refused("train.device is cuda, but torch finds no GPU here: set train.device to cpu")
    if on_host > torch.cuda.device_count():
        raise Refused(
            f"torchrun started {on_host} processes here for {torch.cuda.device_count()} GPUs: start one for each"
        )
    return torch.device("cuda", local_rank)
