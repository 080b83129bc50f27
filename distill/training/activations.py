"""Activation memory: its size in a forward pass, and activation checkpointing."""

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


def layer_stack(network: nn.Module) -> nn.ModuleList:
    """A network's layers: the child `ModuleList` with the most parameters.

    Raises:
        Refused: The network has no `ModuleList`.
    """
    stacks = [module for module in network.children() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise Refused(
            "train.checkpoint_activations and train.optimizer=muon need layers in a ModuleList, and "
            f"{type(network).__name__} has none: set the former to false and the latter to adamw"
        )
    return max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))


def checkpoint_layers(network: nn.Module) -> None:
    """Make each layer save only its inputs and recompute its activations in the backward pass.

    Names and values of the network's tensors do not change.

    Raises:
        Refused: As `layer_stack`.
    """
    for layer in layer_stack(network):
        # A student uses no random numbers, so no generator state has to be restored.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def activation_bytes(network: Any, num_tokens: int, codebook_dim: int) -> int:
    """Activation bytes of one pair in float32, without those of decoding its image; allocates nothing."""
    # Some buffers are always created on the CPU.
    network.to("meta")
    noise_BLC = torch.zeros(1, num_tokens, codebook_dim, device="meta")
    index_B = torch.zeros(1, dtype=torch.int64, device="meta")
    condition: Tensor | TextCondition = index_B
    if takes_text(network.config):
        # A caption of the maximum length.
        shape = 1, network.config.num_condition_tokens
        features_BTE = torch.zeros(*shape, network.config.caption_dim, device="meta")
        condition = TextCondition(features_BTE, torch.ones(shape, dtype=torch.bool, device="meta"))

    def losses() -> Tensor:
        logits_BLV, embeddings_BLC = network(noise_BLC, index_B, condition)
        # The losses copy the target positions, as the clones do.
        token_loss = logits_BLV.clone().log_softmax(-1).sum()
        return token_loss + embeddings_BLC.clone().square().sum()

    return _saved_bytes(losses, network)


def decoder_activation_bytes(tokenizer: Tokenizer, num_tokens: int, codebook_dim: int) -> int:
    """Activation bytes of decoding one pair's image in float32; allocates nothing."""
    tokenizer.to("meta").requires_grad_(False)
    rows_BLC = torch.zeros(1, num_tokens, codebook_dim, device="meta", requires_grad=True)
    return _saved_bytes(lambda: tokenizer.decode(rows_BLC).square().sum(), tokenizer)


def _saved_bytes(compute: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes that autograd saves in a computation, without the network's own tensors; each storage counts once."""
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = tensor
        return tensor

    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        result = compute()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


class _FusedAttention(TorchFunctionMode):
    """Makes attention save the tensors of fused kernels; on the meta device it saves all weights, (H, L, L)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:4])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, mask: Tensor | None = None) -> Tensor:
        out_BHLK = q_BHLK.new_empty(*q_BHLK.shape[:-1], v_BHLK.shape[-1])
        ctx.save_for_backward(q_BHLK, k_BHLK, v_BHLK, mask, out_BHLK, q_BHLK.new_empty(q_BHLK.shape[:-1]))
        return out_BHLK
