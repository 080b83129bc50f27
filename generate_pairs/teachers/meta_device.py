"""Networks without memory for their weights, for loading from a file and for names, shapes and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _WithoutInit(TorchFunctionMode):
    """Skips `torch.nn.init`: it has no effect on the meta device, but some of it imports torch's compiler (a second)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def normal_rows(*shape: int) -> Tensor:
    """Initial weights from N(0, 1 / width), float32, of this shape, whose last size is the width."""
    values = nn.init.normal_(torch.empty(shape))
    # On the meta device, this division would import torch's compiler.
    return values if values.is_meta else values / shape[-1] ** 0.5


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Build modules in this block on the meta device: nothing is allocated or computed."""
    with torch.device("meta"), _WithoutInit():
        yield
