"""The processes that train one student together: each computes a share of every batch, and all apply the same update.

Sums use buckets of fixed content and order, so that a resumed training adds in the same order as an uninterrupted one.
(torch's DistributedDataParallel rebuilds its buckets after the first step of every process.)
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
"""Maximum bytes of one all-reduce."""
TIMEOUT = timedelta(minutes=30)
"""Time limit of one collective operation; rank 0 may be writing a checkpoint."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The processes of a training, and their collective operations, which raise Failed if another process has ended."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    local_size: int = 1
    """Number of processes on this host."""

    @property
    def is_main(self) -> bool:
        """Whether this process has rank 0, which writes files and messages."""
        return self.rank == 0

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes; shapes and order must agree."""
        if self.size == 1:
            return
        with _connection_errors():
            flat_buckets = [(bucket, torch.cat([tensor.flatten() for tensor in bucket])) for bucket in buckets(tensors)]
            pending = [dist.all_reduce(flat, async_op=True) for _, flat in flat_buckets]
            for work, (bucket, flat) in zip(pending, flat_buckets, strict=True):
                work.wait()
                parts = flat.split([tensor.numel() for tensor in bucket])
                for tensor, part in zip(bucket, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    def broadcast_from_zero(self, number: int | None) -> int | None:
        """The non-negative number, or None, that rank 0 passes."""
        own = -1 if number is None else number
        value = self.all_reduce_min(own if self.is_main else torch.iinfo(torch.int64).max)
        return None if value < 0 else value

    def all_reduce_min(self, number: int) -> int:
        """The minimum over all processes."""
        if self.size == 1:
            return number
        minimum = torch.tensor([number])
        with _connection_errors():
            dist.all_reduce(minimum, op=dist.ReduceOp.MIN)
        return int(minimum.item())

    def any_rank(self, flag: bool) -> bool:
        """Whether any process passes True."""
        return self.all_reduce_min(0 if flag else 1) == 0

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        self.all_reduce_min(0)


@contextmanager
def _connection_errors() -> Iterator[None]:
    try:
        yield
    # torch raises this when a connection breaks; its message names the connection.
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Failed(
            f"this process lost its connection to the others ({reason}). The process that ended first reports the cause; "
            "the same command resumes from the last checkpoint"
        ) from error


@contextmanager
def init_distributed(device: str) -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun, only this process.

    `device` is cpu, cuda, or auto for a GPU if there is one; each process then uses its own.

    Raises:
        Refused: There is no GPU, or this host has more processes than GPUs.
        Failed: The other processes cannot be reached.
    """
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    own_device = CPU
    if device != "cpu" and torch.cuda.is_available():
        if local_size > (num_gpus := torch.cuda.device_count()):
            raise Refused(f"torchrun started {local_size} processes here for {num_gpus} GPUs: start one for each")
        own_device = torch.device("cuda", local_rank)
    elif device == "cuda":
        raise Refused("train.device is cuda, but torch finds no GPU here: set train.device to cpu")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(device=own_device)
        return
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
    try:
        # Numbers are exchanged as CPU tensors, whatever device the gradients are on.
        backend = "cpu:gloo,cuda:nccl" if own_device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise Failed(f"the processes of this training cannot be connected: {error}") from error
    world = World(dist.get_rank(), dist.get_world_size(), own_device, local_size)
    # Synchronise first: if one rank exits during start-up, the rendezvous store disappears with it and the others hang.
    world.barrier()
    yield world
    # Not in a `finally`: after a failure, the other processes may never call this.
    dist.destroy_process_group()


def buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group adjacent tensors of one dtype up to `BUCKET_BYTES`; depends only on shapes and dtypes."""
    groups: list[list[Tensor]] = []
    filled = 0
    for tensor in tensors:
        if not groups or tensor.dtype != groups[-1][0].dtype or filled + tensor.nbytes > BUCKET_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups
