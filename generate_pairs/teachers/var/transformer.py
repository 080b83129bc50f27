"""VAR's transformer: scale after scale, with every block modulated by the class (adaLN).

Attribute names are the official tensor names. The student uses the same backbone, so a block is a function of its
input, its modulation and either a mask or, during decoding, a cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.compute.float32 import at_least_float32
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.meta_device import normal_rows

IGNORED_BUFFERS = ("lvl_1L", "attn_bias_for_masking", "attn.zero_k_bias")
"""Endings of the names of constants in official files; this code computes them."""

MAX_LOG_SCALE = math.log(100.0)
"""Upper bound of the learned logarithmic temperature of L2-normalised attention."""


@dataclass(frozen=True)
class VarConfig:
    """Shape of a VAR transformer.

    `scales` are side lengths and start with 1. `l2_attention` normalises queries and keys and learns a temperature per
    head. `shared_adaln` computes one modulation for all blocks, to which each adds its own constant. `dropout` applies
    to the output of each sublayer; `class_dropout` is the share of labels that training replaces by the null class.
    """

    width: int
    depth: int
    num_heads: int
    vocab_size: int
    codebook_dim: int
    scales: tuple[int, ...]
    num_classes: int
    l2_attention: bool = True
    shared_adaln: bool = False
    dropout: float = 0.0
    class_dropout: float = 0.1
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if self.scales[0] != 1:
            raise ValueError(f"scales must start with 1, a single token, not with {self.scales[0]}")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def initial_std(self) -> float:
        """Standard deviation of initial weights."""
        return math.sqrt(1 / (3 * self.width))

    @property
    def layout(self) -> TokenLayout:
        """One AR step per scale: a side x side map, row-major."""
        return TokenLayout(tuple(side * side for side in self.scales))


def official_var(depth: int, scales: tuple[int, ...], shared_adaln: bool = False) -> VarConfig:
    """The published ImageNet models: width and heads grow with the depth."""
    return VarConfig(64 * depth, depth, depth, 4096, 32, scales, 1000, shared_adaln=shared_adaln)


class Modulation(NamedTuple):
    """Gates, scales (with 1 added) and shifts of one block, computed from the class, each (B, 1, D)."""

    attention_gate: Tensor
    ffn_gate: Tensor
    attention_scale: Tensor
    ffn_scale: Tensor
    attention_shift: Tensor
    ffn_shift: Tensor

    @classmethod
    def from_chunks(cls, chunks_B6D: Tensor) -> Modulation:
        """Split six vectors in the official order."""
        gates, scales, shifts = chunks_B6D[:, :, None].split(2, dim=1)
        return cls(*gates.unbind(1), *(1 + scales).unbind(1), *shifts.unbind(1))


def linear(config: VarConfig, num_inputs: int, num_outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer with the official initial weights: biases zero, weights of `gain` times `initial_std`."""
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.trunc_normal_(layer.weight, std=gain * config.initial_std)
    nn.init.zeros_(layer.bias)
    return layer


def adaptive(config: VarConfig, num_chunks: int, num_gates: int = 0) -> nn.Sequential:
    """From a condition (B, D) to `num_chunks` vectors of width D, gates first; initial gates are nearly zero."""
    layer = linear(config, config.width, num_chunks * config.width, gain=0.5)
    nn.init.trunc_normal_(layer.weight[: num_gates * config.width], std=1e-5 * config.initial_std)
    return nn.Sequential(nn.SiLU(), layer)


class LayerCache:
    """Keys and values of one block, allocated for the full sequence; attention reads the filled part."""

    def __init__(self, batch_size: int, config: VarConfig, like: Tensor) -> None:
        shape = (batch_size, config.layout.num_tokens, config.num_heads, config.head_dim)
        self.keys_BLHK, self.values_BLHK = like.new_empty(shape), like.new_empty(shape)

    def put(self, span: slice, k_BsHK: Tensor, v_BsHK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the positions `span`; return all keys and values up to its end, each (B, length, H, K)."""
        self.keys_BLHK[:, span], self.values_BLHK[:, span] = k_BsHK, v_BsHK
        return self.keys_BLHK[:, : span.stop], self.values_BLHK[:, : span.stop]


class Attention(nn.Module):
    """Self-attention with one fused projection; keys have no bias, queries and values do."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.l2_attention = config.l2_attention
        # Without normalisation, the official code divides by 4 sqrt(K).
        self.scale = 1.0 if config.l2_attention else 0.25 / math.sqrt(config.head_dim)
        if config.l2_attention:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.num_heads, 1, 1), math.log(4.0)))
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.mat_qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        nn.init.trunc_normal_(self.mat_qkv.weight, std=config.initial_std)
        self.proj = linear(config, config.width, config.width, gain=1 / math.sqrt(2 * config.depth))

    def forward(
        self, x_BLD: Tensor, mask_LL: Tensor | None, cache: LayerCache | None = None, span: slice = slice(0)
    ) -> Tensor:
        """Attend from L positions, `span`, to themselves and, with a cache, to all before them.

        `mask_LL` is True where a query (row) attends to a key; None if every query attends to every key.
        """
        B, L, D = x_BLD.shape
        bias_3D = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_BLD, self.mat_qkv.weight, bias_3D).view(B, L, 3, self.num_heads, D // self.num_heads)
        q_BLHK, k_BLHK, v_BLHK = qkv.unbind(2)
        if self.l2_attention:
            q_BLHK, k_BLHK = F.normalize(qkv[:, :, :2], dim=-1, eps=1e-12).unbind(2)
            q_BLHK = q_BLHK * self.scale_mul_1H11[0, :, 0].clamp(max=MAX_LOG_SCALE).exp()
        if cache is not None:
            k_BLHK, v_BLHK = cache.put(span, k_BLHK, v_BLHK)
        q, k, v = (heads.transpose(1, 2) for heads in (q_BLHK, k_BLHK, v_BLHK))
        out_BHLK = F.scaled_dot_product_attention(q, k, v, mask_LL, scale=self.scale)
        return self.proj(out_BHLK.transpose(1, 2).reshape(B, L, D))


class FeedForward(nn.Module):
    """fc2(gelu(fc1(x))), GELU in its tanh form."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.fc1 = linear(config, config.width, hidden)
        self.fc2 = linear(config, hidden, config.width, gain=1 / math.sqrt(2 * config.depth))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then feed-forward; the class scales and shifts their inputs and gates their outputs."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm_eps = config.norm_eps
        self.attn = Attention(config)
        self.ffn = FeedForward(config)
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(normal_rows(1, 1, 6, config.width))
            nn.init.trunc_normal_(self.ada_gss[:, :, :2], std=1e-5)
        else:
            self.ada_lin = adaptive(config, 6, num_gates=2)

    def modulation(self, condition_BD: Tensor, shared_B6D: Tensor | None) -> Modulation:
        """The block's modulation, from the condition or from the modulation that all blocks share."""
        if shared_B6D is None:
            return Modulation.from_chunks(self.ada_lin(condition_BD).unflatten(-1, (6, -1)))
        return Modulation.from_chunks(self.ada_gss[0] + shared_B6D)

    def forward(
        self,
        x_BLD: Tensor,
        modulation: Modulation,
        mask_LL: Tensor | None = None,
        cache: LayerCache | None = None,
        span: slice = slice(0),
        between_BLD: Tensor | None = None,
    ) -> Tensor:
        """Apply the block to L positions; `between_BLD` is added after attention. Others are as in `Attention`."""
        m = modulation
        normalised_BLD = modulated(x_BLD, m.attention_scale, m.attention_shift, self.norm_eps)
        attended_BLD = self.attn(normalised_BLD, mask_LL, cache, span)
        x_BLD = torch.addcmul(x_BLD, F.dropout(attended_BLD, self.dropout, self.training), m.attention_gate)
        if between_BLD is not None:
            x_BLD = x_BLD + between_BLD
        fed_BLD = self.ffn(modulated(x_BLD, m.ffn_scale, m.ffn_shift, self.norm_eps))
        return torch.addcmul(x_BLD, F.dropout(fed_BLD, self.dropout, self.training), m.ffn_gate)


class AdaptiveNorm(nn.Module):
    """The last norm, with a scale and a shift computed from the class."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.norm_eps = config.norm_eps
        self.ada_lin = adaptive(config, 2)

    def forward(self, x_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        scale_B1D, shift_B1D = self.ada_lin(condition_BD)[:, None].chunk(2, dim=-1)
        return modulated(x_BLD, 1 + scale_B1D, shift_B1D, self.norm_eps)


def modulated(x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * scale + shift."""
    return torch.addcmul(shift_B1D, F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=eps), scale_B1D)


class VarBackbone(nn.Module):
    """The part that teacher and student share: embeddings, blocks and token head.

    `positions_per_level` has one number per row of `lvl_embed`.
    """

    level_L: Tensor
    mask_LL: Tensor

    def __init__(self, config: VarConfig, positions_per_level: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        layout = TokenLayout(tuple(positions_per_level))
        self.pos_start = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_1LC = nn.Parameter(torch.empty(1, layout.num_tokens, config.width))
        self.word_embed = linear(config, config.codebook_dim, config.width)
        self.class_emb = nn.Embedding(config.num_classes + 1, config.width)
        self.lvl_embed = nn.Embedding(layout.num_steps, config.width)
        self.shared_ada_lin = adaptive(config, 6, num_gates=2) if config.shared_adaln else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = AdaptiveNorm(config)
        self.head = linear(config, config.width, config.vocab_size, gain=0.02)
        for table in (self.pos_start, self.pos_1LC, self.class_emb.weight, self.lvl_embed.weight):
            nn.init.trunc_normal_(table, std=config.initial_std)
        # On the CPU, because models on the meta device need its values.
        level_L = torch.tensor(layout.step_of_token, device="cpu")
        self.register_buffer("level_L", level_L, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's arithmetic."""
        return self.pos_start.dtype

    def positions(self) -> Tensor:
        """Position and level embeddings of the full sequence, (1, L, D)."""
        return self.pos_1LC + self.lvl_embed(self.level_L)

    def modulations(self, condition_BD: Tensor) -> list[Modulation]:
        """The modulation of each block; it depends only on the class, so once per batch is enough."""
        shared_B6D: Tensor | None = None
        if self.shared_ada_lin is not None:
            shared_B6D = self.shared_ada_lin(condition_BD).unflatten(-1, (6, -1))
        return [cast(Block, block).modulation(condition_BD, shared_B6D) for block in self.blocks]


class VarTransformer(VarBackbone):
    """The official `VAR`: the output at a position predicts that position's token."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__(config, config.layout.tokens_per_step)
        mask_LL = self.level_L[:, None] >= self.level_L
        self.register_buffer("mask_LL", mask_LL, persistent=False)

    def hidden(
        self,
        x_BLD: Tensor,
        condition_BD: Tensor,
        modulations: Sequence[Modulation],
        mask_LL: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
        span: slice = slice(0),
    ) -> Tensor:
        """Apply all blocks and the last norm to embedded positions: the input of the head, (B, L, D)."""
        for index, block in enumerate(self.blocks):
            cache = None if caches is None else caches[index]
            x_BLD = block(x_BLD, modulations[index], mask_LL, cache, span)
        return self.head_nm(x_BLD, condition_BD)

    def forward(self, labels_B: Tensor, next_inputs_BnC: Tensor) -> Tensor:
        """Logits (B, L, V) of every token given those of earlier scales; `num_classes` is the null label.

        `next_inputs_BnC` is `VarTokenizer.next_inputs` of the tokens, n = L - 1.
        """
        condition_BD = self.class_emb(labels_B)
        start_B1D = condition_BD[:, None] + self.pos_start
        x_BLD = torch.cat([start_B1D, self.word_embed(next_inputs_BnC)], dim=1) + self.positions()
        h_BLD = self.hidden(x_BLD, condition_BD, self.modulations(condition_BD), self.mask_LL)
        return at_least_float32(self.head(h_BLD))
