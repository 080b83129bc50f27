"""The kind of number that a training computes with; weights, averages and optimizer stay float32 under bfloat16."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from shards.core.errors import Refused

Precision = Literal["float32", "bfloat16", "float64"]


def computing(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """What a forward pass runs under: autocast for bfloat16, nothing for the others, whose weights decide."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def weight_dtype(precision: Precision) -> torch.dtype:
    """Of weights, averages, gradients and optimizer state."""
    return torch.float64 if precision == "float64" else torch.float32


@contextmanager
def determinism(asked: bool) -> Iterator[None]:
    """Compute with kernels that give the same bytes again while the block lasts, if that is asked for.

    On a CPU all of a student's are; on a GPU others are faster, and some operations have no other.

    Raises:
        Refused: it is asked for, and an operation in the block has no such kernel.
    """
    if not asked:
        yield
        return
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        operation, is_missing, _ = str(error).partition(" does not have a deterministic implementation")
        if not is_missing:
            raise
        raise Refused(
            f"train.deterministic: {operation} has no deterministic kernel on this device: set it to false, or leave "
            "out what needs the operation (train.image_weight above 0 goes back through the decoder)"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
