"""LlamaGen's transformer: decoder-only, over condition tokens and then image tokens in row-major order.

Attribute names are the official tensor names. The student uses the same layers, so a layer is a function of its input,
the rotation of its positions and, during decoding, its cache.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.compute.float32 import at_least_float32
from generate_pairs.teachers.base import TextCondition, TokenLayout
from generate_pairs.teachers.meta_device import normal_rows

OFFICIAL_SIZES = {
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1280, 36, 20),
    "XXL": (1536, 48, 24),
    "XXXL": (2560, 48, 40),
    "3B": (3200, 24, 32),
}
"""Width, depth and number of heads of the published models."""


@dataclass(frozen=True)
class LlamaGenConfig:
    """Shape of a LlamaGen transformer.

    `num_tokens` is the length L of the image part, a square grid. `num_condition_tokens` positions precede it: a class
    embedding, or the projected features (`caption_dim` numbers each) of a caption. `dropout` applies to embeddings and
    to the output of each sublayer; `class_dropout` is the share of labels that training replaces by the null class.
    """

    width: int
    depth: int
    num_heads: int
    vocab_size: int
    num_tokens: int
    num_classes: int
    condition: Literal["class", "text"] = "class"
    num_condition_tokens: int = 1
    caption_dim: int = 2048
    ffn_multiple_of: int = 256
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"width {self.width} must be a multiple of 4 x num_heads = {4 * self.num_heads}: "
                "rotary positions use half of each head for rows, half for columns, in pairs of numbers"
            )
        if self.grid_size**2 != self.num_tokens:
            raise ValueError(f"num_tokens must be a square (a grid of tokens), not {self.num_tokens}")
        if self.condition not in ("class", "text"):
            raise ValueError(f'condition must be "class" or "text", not {self.condition!r}')
        if self.condition == "class" and self.num_condition_tokens != 1:
            raise ValueError(f"a class is one condition token, not {self.num_condition_tokens}")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def layout(self) -> TokenLayout:
        """One AR step per token."""
        return TokenLayout((1,) * self.num_tokens)

    @property
    def grid_size(self) -> int:
        return math.isqrt(self.num_tokens)

    @property
    def ffn_width(self) -> int:
        """Two thirds of 4 x width, rounded up to a multiple of `ffn_multiple_of`."""
        multiple = self.ffn_multiple_of
        return -(-int(8 * self.width / 3) // multiple) * multiple


def rotary_2d(config: LlamaGenConfig) -> Tensor:
    """The complex factors of q, k and v at each position: (T + L, 3, 1, K / 2), complex64, on the CPU.

    The numbers (2j, 2j + 1) of a head are one complex number. The first half of the pairs is rotated by the token's
    row, the second half by its column, times the frequency base^(-4j / K). Queries and keys of condition positions are
    multiplied by zero, as in the official code, so condition keys score 0. The factor of values is 1, so that one
    product serves all three.
    """
    side, num_frequencies = config.grid_size, config.head_dim // 4
    exponents = torch.arange(num_frequencies, dtype=torch.float64, device="cpu") * (-4.0 / config.head_dim)
    steps = torch.arange(side, dtype=torch.float64, device="cpu")
    angles = torch.outer(steps, config.rope_base**exponents)
    by_row, by_column = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    image = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    factors = torch.polar(torch.ones_like(image), image)
    factors = torch.cat([factors.new_zeros(config.num_condition_tokens, factors.shape[1]), factors])
    return torch.stack([factors, factors, torch.ones_like(factors)], dim=1)[:, :, None].to(torch.complex64)


def rotated(qkv_BT3HK: Tensor, rotation: Tensor) -> Tensor:
    """Multiply by the rows of `rotary_2d` for these T positions, in at least float32."""
    pairs = at_least_float32(qkv_BT3HK).unflatten(-1, (-1, 2))
    product = torch.view_as_real(torch.view_as_complex(pairs) * rotation)
    return product.flatten(-2).to(qkv_BT3HK.dtype)


class LayerCache:
    """Keys and values of one layer, allocated for the full sequence; attention reads the filled part."""

    def __init__(self, batch_size: int, length: int, config: LlamaGenConfig, like: Tensor) -> None:
        self.block = like.new_empty(batch_size, 2, config.num_heads, length, config.head_dim)
        self.length = 0

    def append(self, kv_BT2HK: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions; return all keys and values so far, each (B, H, length, K)."""
        start, self.length = self.length, self.length + kv_BT2HK.shape[1]
        self.block[:, :, :, start : self.length] = kv_BT2HK.permute(0, 2, 3, 1, 4)
        keys, values = self.block[:, :, :, : self.length].unbind(1)
        return keys, values

    def keep_first(self, batch_size: int) -> None:
        """Keep only the first rows of the batch."""
        self.block = self.block[:batch_size]


class Attention(nn.Module):
    """Causal self-attention with one fused projection and rotary positions."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.wqkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x_BTD: Tensor, rotation: Tensor, cache: LayerCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attend from T positions to themselves and, with a cache, to all before them; if it is not empty, T must be 1.

        `rotation` has the rows of `rotary_2d` for these positions; `mask`, broadcastable to (B, H, T, positions so far),
        is True where attended to; None is causal.
        """
        B, T, D = x_BTD.shape
        qkv = rotated(self.wqkv(x_BTD).view(B, T, 3, self.num_heads, -1), rotation)
        q_BHTK = qkv[:, :, 0].transpose(1, 2)
        if cache is None:
            k_BHTK, v_BHTK = qkv[:, :, 1:].permute(2, 0, 3, 1, 4)
        else:
            k_BHTK, v_BHTK = cache.append(qkv[:, :, 1:])
        is_causal = mask is None and T > 1
        out_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, mask, is_causal=is_causal)
        return self.wo(out_BHTK.transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.ffn_width, bias=False)
        self.w3 = nn.Linear(config.width, config.ffn_width, bias=False)
        self.w2 = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    """One transformer layer: attention, then feed-forward, each with an RMS-normalised input."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(
        self, x_BTD: Tensor, rotation: Tensor, cache: LayerCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x_BTD), rotation, cache, mask)
        x_BTD = x_BTD + F.dropout(attended, self.dropout, self.training)
        return x_BTD + F.dropout(self.feed_forward(self.ffn_norm(x_BTD)), self.dropout, self.training)


class ClassEmbedding(nn.Module):
    """Labels (B,) to one condition token (B, 1, D); the last row of the table is the null class."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels_B: Tensor) -> Tensor:
        return self.embedding_table(labels_B)[:, None]


class CaptionEmbedding(nn.Module):
    """Text features (B, T, E) to condition tokens (B, T, D); `uncond_embedding` is the null condition."""

    def __init__(self, num_tokens: int, caption_dim: int, width: int) -> None:
        super().__init__()
        self.uncond_embedding = nn.Parameter(normal_rows(num_tokens, caption_dim))
        self.cap_proj = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(caption_dim, width, bias=False),
                activation=nn.GELU(approximate="tanh"),
                fc2=nn.Linear(width, width, bias=False),
            )
        )

    def forward(self, features_BTE: Tensor) -> Tensor:
        return self.cap_proj(features_BTE)

    def of(self, condition: TextCondition) -> Tensor:
        """Condition tokens (B, T, D) of captions; features at padding have no effect."""
        features_BTE = condition.features_BTE.to(self.uncond_embedding.dtype)
        return self(features_BTE * condition.seen_BT[..., None])

    def unconditional(self, condition: TextCondition) -> Tensor:
        """Condition tokens (1, T, D) of the null condition, for a batch padded to this length."""
        return self(self.uncond_embedding[-condition.features_BTE.shape[1] :])[None]


def condition_embedding(config: LlamaGenConfig) -> ClassEmbedding | CaptionEmbedding:
    """The module that computes condition tokens from classes or captions, with fresh weights."""
    if config.condition == "class":
        return ClassEmbedding(config.num_classes, config.width)
    return CaptionEmbedding(config.num_condition_tokens, config.caption_dim, config.width)


def caption_mask(seen_BT: Tensor, num_tokens: int) -> Tensor:
    """Attention mask (B, 1, P, P), bool, of P positions: T of the condition, then `num_tokens` of the image.

    A position attends to itself and to all before it except padding.
    """
    seen_BP = F.pad(seen_BT, (0, num_tokens), value=True)
    square_PP = torch.ones(seen_BP.shape[1], seen_BP.shape[1], dtype=torch.bool, device=seen_BT.device)
    return (seen_BP[:, None, None] & square_PP.tril()) | square_PP.tril().triu()


def initialise(model: nn.Module, output: nn.Linear) -> None:
    """LlamaGen's initial weights: N(0, 0.02^2), with biases and the `output` head zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    nn.init.zeros_(output.weight)


class LlamaGenTransformer(nn.Module):
    """The official `Transformer`: the output at a position predicts the token at the next one."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = condition_embedding(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.output = nn.Linear(config.width, config.vocab_size, bias=False)
        # Not a buffer: models in half precision must not round it, and models on the meta device need it.
        self.rotation = rotary_2d(config)
        initialise(self, self.output)

    def caches(self, batch_size: int, num_condition: int) -> list[LayerCache]:
        """Empty caches for a full sequence without its last token, which is never an input."""
        length = num_condition + self.config.num_tokens - 1
        like = self.tok_embeddings.weight
        return [LayerCache(batch_size, length, self.config, like) for _ in self.layers]

    def hidden(
        self, x_BTD: Tensor, rotation: Tensor, caches: Sequence[LayerCache] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Apply all layers and the last norm to the embeddings of T consecutive positions, (B, T, D)."""
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, rotation, None if caches is None else caches[index], mask)
        return self.norm(x_BTD)

    def forward(self, condition_BTD: Tensor, tokens_BL: Tensor, seen_BT: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of every token given those before it.

        The first condition tokens may be omitted if they are padding in the full batch; `seen_BT` is False at other
        padding. The last token is not used.
        """
        num_condition, num_before = condition_BTD.shape[1], tokens_BL.shape[1] - 1
        x_BPD = torch.cat([condition_BTD, self.tok_embeddings(tokens_BL[:, :-1])], dim=1)
        x_BPD = F.dropout(x_BPD, self.config.dropout, self.training)
        mask = None if seen_BT is None else caption_mask(seen_BT, num_before)
        rotation = self.rotation_after(num_condition)[: x_BPD.shape[1]].to(x_BPD.device)
        h_BLD = self.hidden(x_BPD, rotation, mask=mask)[:, num_condition - 1 :]
        return at_least_float32(self.output(h_BLD))

    def rotation_after(self, num_condition: int) -> Tensor:
        """The rows of `rotary_2d` for a sequence that starts with this number of condition tokens."""
        return self.rotation[self.config.num_condition_tokens - num_condition :]
