"""What a training keeps of a forward pass for its gradient: how much that is, and how to keep less."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shards.errors import Refused


def layers_of(network: nn.Module) -> nn.ModuleList:
    """A network's stack of layers: of its lists of modules the one with most parameters.

    Raises:
        Refused: it has no list of modules.
    """
    stacks = [module for module in network.children() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise Refused(
            f"{type(network).__name__} keeps no layers in a ModuleList, which train.checkpoint_activations and "
            "train.optimizer=muon need: set the one to false and the other to adamw"
        )
    return max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))


def checkpoint_layers(network: nn.Module) -> None:
    """From now on each layer keeps its inputs alone, and is computed again for its gradient.

    Names and numbers of the network's tensors stay as they are.

    Raises:
        Refused: as `layers_of`.
    """
    for layer in layers_of(network):
        # A student draws nothing at random, so there is no state of generators to bring back.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def kept_bytes(network: nn.Module, num_tokens: int, codebook_dim: int) -> int:
    """Bytes that the gradient of one pair keeps of the forward pass, in float32.

    Args:
        network: a family's, built on the meta device: nothing is computed and nothing allocated.
        num_tokens: L of a pair.
        codebook_dim: C.
    """
    # Some buffers are built on the CPU whatever the device.
    network.to("meta")
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor
        return tensor

    noise_BLC = torch.zeros(1, num_tokens, codebook_dim, device="meta")
    index_B = torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits_BLV, embeddings_BLC = network(noise_BLC, index_B, index_B)
        # The softmax of a cross-entropy, and what its gradient is written to.
        loss = logits_BLV.log_softmax(-1).sum() + embeddings_BLC.square().sum()
    del loss
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) + 2 * logits_BLV.nbytes
