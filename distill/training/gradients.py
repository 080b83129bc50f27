"""The gradient of a batch: in parts that fit a device, each part shared by CPU threads, summed over all processes.

Threads inside every operation wait for each other a thousand times a step, which on two virtual cores costs a third
of the time; threads with a share each wait once.
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
from distill.training.precision import computing


class Gradients:
    """Computes a student's losses and their gradient, over as many parts, threads and processes as there are."""

    def __init__(self, student: Student, config: TrainConfig, world: World, device_batch_size: int) -> None:
        """What computes for this process.

        Args:
            student: on the process's device.
            config: of the losses, the precision and the threads.
            world: whose gradients are added up.
            device_batch_size: pairs that are computed at once.

        Raises:
            Refused, Failed: as `image_distance`.
        """
        self.student = student
        self.config = config
        self.world = world
        self.device_batch_size = device_batch_size
        self.parameters = list(student.network.parameters())
        self.image_distance = image_distance(config, world.device)
        self._threads = ThreadPoolExecutor(config.threads, "share", torch.set_num_threads, (1,))

    def __call__(self, micro_batch: MicroBatch, batch_targets: BatchTargets) -> Losses:
        """The losses of a batch, detached; each parameter's `grad` becomes its gradient, None where there is none.

        Parts and shares are added in order, so that the same cut gives the same bytes.

        Args:
            micro_batch: this process's pairs of the batch.
            batch_targets: what is asked in the whole batch.

        Raises:
            Failed: another process is gone.
        """
        for parameter in self.parameters:
            parameter.grad = None
        losses: list[Losses] = []
        for part in micro_batch.split(-(-len(micro_batch.labels_B) // self.device_batch_size)):
            micro_batches = part.split(self.config.threads)
            computed = list(
                self._threads.map(lambda each: self._gradient(each, batch_targets), micro_batches)
            )
            for _, gradient in computed:
                self._accumulate(gradient)
            losses += [each for each, _ in computed]
        total = _added(losses)
        self.world.add([total.total, *total.parts.values()])
        self.world.add([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        return total

    def _gradient(
        self, micro_batch: MicroBatch, batch_targets: BatchTargets
    ) -> tuple[Losses, list[Tensor | None]]:
        with computing(self.student.starts.device, self.config.precision):
            losses = student_losses(
                self.student, micro_batch, batch_targets, self.config, self.image_distance
            )
        gradient = torch.autograd.grad(losses.total, self.parameters, allow_unused=True)
        parts = {name: value.detach() for name, value in losses.parts.items()}
        return Losses(losses.total.detach(), parts), list(gradient)

    def _accumulate(self, gradient: Sequence[Tensor | None]) -> None:
        """Add a share's gradient to what is there."""
        for parameter, piece in zip(self.parameters, gradient, strict=True):
            if piece is None:
                continue
            if parameter.grad is None:
                # In memory of its own: parameters that are summed share one gradient, and clipping would scale it twice.
                parameter.grad = piece.clone(memory_format=torch.contiguous_format)
            else:
                parameter.grad += piece


def _added(losses: Sequence[Losses]) -> Losses:
    return Losses(
        torch.stack([each.total for each in losses]).sum(),
        {name: torch.stack([each.parts[name] for each in losses]).sum() for name in losses[0].parts},
    )
