"""Networks without numbers: to be filled from a file, to be counted, or to be asked for names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _Uninitialised(TorchFunctionMode):
    """Leaves out what `torch.nn.init` would do: on the meta device nothing, but for some of it torch loads its compiler,
    which takes a second.
    """

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
    """Numbers to begin with from N(0, 1 / width), float32 of this shape, whose last size is the width."""
    values = nn.init.normal_(torch.empty(shape))
    # A division there is one of those for which torch loads its compiler.
    return values if values.is_meta else values / shape[-1] ** 0.5


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Modules that are built in the block lie on the meta device: nothing is allocated and nothing computed."""
    with torch.device("meta"), _Uninitialised():
        yield
