"""What a training keeps of a forward pass for its gradient: how much that is, and how to keep less."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from generate_pairs.teachers.base import TextCondition, Tokenizer, takes_text
from shards.core.errors import Refused


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
    """Bytes that the gradient of one pair keeps of the forward pass, in float32, but for that of decoded images.

    Args:
        network: a family's, built on the meta device: nothing is computed and nothing allocated.
        num_tokens: L of a pair.
        codebook_dim: C.
    """
    # Some buffers are built on the CPU whatever the device.
    network.to("meta")
    noise_BLC = torch.zeros(1, num_tokens, codebook_dim, device="meta")
    index_B = torch.zeros(1, dtype=torch.int64, device="meta")
    condition = _longest_condition(network.config, index_B)

    def losses() -> Tensor:
        logits_BLV, embeddings_BLC = network(noise_BLC, index_B, condition)
        # Where a cross-entropy and a squared distance pick what is asked, they copy it.
        missed = logits_BLV.clone().log_softmax(-1).sum()
        return missed + embeddings_BLC.clone().square().sum()

    return _kept(losses, network)


def _longest_condition(config: Any, index_B: Tensor) -> Tensor | TextCondition:
    """A class or, where the network is conditioned on text, a caption that fills all places there are for it."""
    if not takes_text(config):
        return index_B
    shape = (len(index_B), config.num_condition_tokens)
    features_BTE = torch.zeros(*shape, config.caption_dim, device=index_B.device)
    return TextCondition(features_BTE, torch.ones(shape, dtype=torch.bool, device=index_B.device))


def kept_bytes_of_images(tokenizer: Tokenizer, num_tokens: int, codebook_dim: int) -> int:
    """Bytes that the gradient of one pair keeps of decoding its image, in float32.

    Args:
        tokenizer: a family's, built on the meta device.
        num_tokens: L of a pair.
        codebook_dim: C.
    """
    tokenizer.to("meta").requires_grad_(False)
    rows_BLC = torch.zeros(1, num_tokens, codebook_dim, device="meta", requires_grad=True)
    return _kept(lambda: tokenizer.decode(rows_BLC).square().sum(), tokenizer)


def _kept(compute: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes that autograd keeps of a computation besides a network's own tensors, each memory counted once."""
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor
        return tensor

    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = compute()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _FusedAttention(TorchFunctionMode):
    """Attention keeps what the kernels of real devices keep; the meta device's keeps all weights, (H, L, L)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:4])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        out_BHLK = q_BHLK.new_empty(*q_BHLK.shape[:-1], v_BHLK.shape[-1])
        ctx.save_for_backward(q_BHLK, k_BHLK, v_BHLK, mask, out_BHLK, q_BHLK.new_empty(q_BHLK.shape[:-1]))
        return out_BHLK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("a computation without numbers has no gradient")
