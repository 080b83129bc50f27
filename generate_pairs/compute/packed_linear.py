"""Weights laid out once in the order in which a CPU's matrix products read them.

A product with few rows, as decoding makes them, is bound by reading weights. oneDNN's own layout (its "inner
product" with a weight of any format) reads them faster than row by row does; `benchmarks/beside_official.py` measures
both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIN_WEIGHTS = 2**19
"""Smaller layers stay as they are: in the cache of a processor the layout hardly matters, and the call costs more."""


class Projection(nn.Linear):
    """A linear layer whose bias, if there is one, comes with the input."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, self.weight, bias)


class PackedLinear(nn.Module):
    """A linear layer that only computes: its weight is opaque, and has no gradient and no place in a file."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = self.bias if bias is None else bias
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")


def pack_linears(network: nn.Module) -> int:
    """Puts `PackedLinear` in place of a network's large linear layers, where the processor has use for it.

    Only float32 layers on a CPU, and only where torch was built with oneDNN. The network can then neither be
    trained nor saved; what it computes differs by rounding.

    Args:
        network: in eval mode; changed in place.

    Returns:
        How many layers were replaced.

    Raises:
        ValueError: the network is in training mode.
    """
    if network.training:
        raise ValueError("a network that trains cannot be packed: put it in eval mode first")
    if not torch.backends.mkldnn.is_available():
        return 0
    replaced = 0
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear) and _gains(layer.weight):
                setattr(parent, name, PackedLinear(layer))
                replaced += 1
    return replaced


def _gains(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= MIN_WEIGHTS
