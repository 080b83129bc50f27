"""Full float32 on a GPU: what makes tokens must not round more than it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply and convolve float32 numbers as such while the block lasts.

    A GPU may round them to TF32 first: products where somebody asked for it, convolutions by default. In the flow map
    that alone changes one token in 250.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
