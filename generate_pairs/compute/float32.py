"""Full float32 on a GPU: what makes tokens must not round more than it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply and convolve float32 numbers as such while the block lasts.

    A GPU may round them to TF32 first: products where somebody asked for it, convolutions by default. In the flow map
    that alone changes one token in 250.
    """
    try:
        products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        # Somebody has set them by torch's newer names, which do not go together with the older ones.
        with _by_newer_names():
            yield
        return
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def _by_newer_names() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    matmul, conv = torch.backends.cuda.matmul, cudnn.conv
    products, convolutions = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = products, convolutions


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision tensors as float32, wider ones unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
