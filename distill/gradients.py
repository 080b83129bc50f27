"""The gradient of a batch, its shares computed side by side by CPU threads.

Threads inside every operation wait for each other a thousand times a step, which on two virtual cores costs a third
of the time; threads with a share each wait once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from distill.config import TrainConfig
from distill.losses import Losses, Share, shares, student_losses
from distill.student import Student
from distill.targets import Targets


class Gradients:
    """Computes a student's losses and their gradient, with as many threads as the settings say."""

    def __init__(self, student: Student, config: TrainConfig) -> None:
        self.student = student
        self.config = config
        self.parameters = list(student.network.parameters())
        self._threads = ThreadPoolExecutor(config.threads, "share", torch.set_num_threads, (1,))

    def __call__(self, targets: Targets, tokens_BL: Tensor, labels_B: Tensor) -> Losses:
        """The losses of a batch, detached; each parameter's `grad` becomes its gradient, None where there is none.

        Shares are added in order, so that the same number of threads gives the same bytes.
        """
        parts = shares(targets, tokens_BL, labels_B, self.config.threads)
        computed = list(self._threads.map(self._share, parts))
        gradients = zip(*(gradient for _, gradient in computed), strict=True)
        for parameter, pieces in zip(self.parameters, gradients, strict=True):
            parameter.grad = _added([piece for piece in pieces if piece is not None])
        losses = [each for each, _ in computed]
        return Losses(
            torch.stack([each.total for each in losses]).sum(),
            {name: torch.stack([each.parts[name] for each in losses]).sum() for name in losses[0].parts},
        )

    def _share(self, share: Share) -> tuple[Losses, tuple[Tensor | None, ...]]:
        losses = student_losses(self.student, share, self.config)
        gradient = torch.autograd.grad(losses.total, self.parameters, allow_unused=True)
        parts = {name: value.detach() for name, value in losses.parts.items()}
        return Losses(losses.total.detach(), parts), gradient


def _added(pieces: Sequence[Tensor]) -> Tensor | None:
    """The sum, in memory of its own: parameters that are summed share one gradient, and clipping would scale it twice."""
    if not pieces:
        return None
    total = pieces[0].clone(memory_format=torch.contiguous_format)
    for piece in pieces[1:]:
        total += piece
    return total
