"""The gradient of a batch: in micro-batches that fit the device, divided among CPU threads, summed over all processes.

The threads of one operation wait for each other about a thousand times a step, which costs a third of the time on two
virtual cores. Threads that each compute a share of the batch wait once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from distill.config import TrainConfig
from distill.objective.losses import BatchTargets, Losses, MicroBatch, student_losses
from distill.objective.perceptual import image_distance
from distill.student.student import Student
from distill.training.distributed import World
from distill.training.precision import autocast_for


class Gradients:
    """Computes a student's losses and their gradient."""

    def __init__(self, student: Student, config: TrainConfig, world: World, device_batch_size: int) -> None:
        """Prepare the computation of one process, which computes `device_batch_size` pairs at once.

        Raises:
            Refused, Failed: As `image_distance`.
        """
        self.student = student
        self.config = config
        self.world = world
        self.device_batch_size = device_batch_size
        self.parameters = list(student.network.parameters())
        self.image_distance = image_distance(config, world.device)
        self._threads = ThreadPoolExecutor(config.threads, "share", torch.set_num_threads, (1,))

    def __call__(self, micro_batch: MicroBatch, batch_targets: BatchTargets) -> Losses:
        """Compute the detached losses of a batch and set each parameter's `grad`; None if it has no gradient.

        `micro_batch` contains the pairs of this process, `batch_targets` counts targets in the global batch. Parts are
        added in order, so that an equal division gives equal bytes.

        Raises:
            Failed: Another process has ended.
        """
        for parameter in self.parameters:
            parameter.grad = None
        losses: list[Losses] = []
        for part in micro_batch.split_by_size(self.device_batch_size):
            shares = part.split(self.config.threads)
            results = list(self._threads.map(lambda share: self._gradient(share, batch_targets), shares))
            for share_losses, gradient in results:
                losses.append(share_losses)
                self._accumulate(gradient)
        total = _sum(losses)
        self.world.all_reduce_sum([total.total, *total.parts.values()])
        self.world.all_reduce_sum([p.grad for p in self.parameters if p.grad is not None])
        return total

    def _gradient(self, micro_batch: MicroBatch, batch_targets: BatchTargets) -> tuple[Losses, list[Tensor | None]]:
        with autocast_for(self.student.starts.device, self.config.precision):
            losses = student_losses(self.student, micro_batch, batch_targets, self.config, self.image_distance)
        gradient = torch.autograd.grad(losses.total, self.parameters, allow_unused=True)
        parts = {name: value.detach() for name, value in losses.parts.items()}
        return Losses(losses.total.detach(), parts), list(gradient)

    def _accumulate(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                # A copy: parameters that are added share one gradient tensor, and clipping would scale it twice.
                parameter.grad = gradient.clone(memory_format=torch.contiguous_format)
            else:
                parameter.grad += gradient


def _sum(losses: Sequence[Losses]) -> Losses:
    return Losses(
        torch.stack([each.total for each in losses]).sum(),
        {name: torch.stack([each.parts[name] for each in losses]).sum() for name in losses[0].parts},
    )
