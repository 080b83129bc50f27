"""Compute precision and deterministic kernels; with bfloat16, weights, averages and optimizer state stay float32."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from shards.core.errors import Refused

Precision = Literal["float32", "bfloat16", "float64"]


def autocast_for(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context of a forward pass: autocast for bfloat16; otherwise the weights determine the precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def weight_dtype(precision: Precision) -> torch.dtype:
    """Dtype of weights, averages, gradients and optimizer state."""
    return torch.float64 if precision == "float64" else torch.float32


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Use only deterministic kernels in this context, if enabled.

    On a CPU, all kernels of a student are deterministic. On a GPU they are slower, and some operations have none.

    Raises:
        Refused: An operation in this context has no deterministic kernel.
    """
    if not enabled:
        yield
        return
    # cuBLAS reads this variable on first use.
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
            f"train.deterministic: {operation} has no deterministic kernel on this device: set it to false, or disable "
            "the loss that uses the operation (train.image_weight uses the decoder's backward pass)"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
