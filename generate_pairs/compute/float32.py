"""Full float32 precision on GPUs, whose default for some operations is TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def full_float32() -> Iterator[None]:
    """Disable TF32 within the block, for matrix products and convolutions.

    A GPU rounds to TF32 in convolutions by default, and in products if a program enables it. In the flow map that alone
    changes one token in 250.
    """
    try:
        products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        # The caller has used torch's newer settings, which exclude the older ones.
        with _full_float32_by_new_settings():
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
def _full_float32_by_new_settings() -> Iterator[None]:
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
