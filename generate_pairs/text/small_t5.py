"""A small text encoder with the architecture of T5 version 1.1: words or bytes to one feature per token.

Attributes have the names of `T5EncoderModel` in transformers, which can load the same tensors.
Source: Raffel et al., arXiv 1910.10683, and Shazeer, arXiv 2002.05202, for the gated feed-forward.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING, END, UNKNOWN = 0, 1, 2
"""T5's special token ids; other ids start at 3."""
NUM_SPECIAL = 3
NUM_BYTES = 256


@dataclass(frozen=True)
class SmallT5Config:
    """Shape of the encoder. `words` is the vocabulary; if it is empty, tokens are UTF-8 bytes as in ByT5."""

    width: int
    depth: int
    num_heads: int
    head_dim: int
    ffn_width: int
    words: tuple[str, ...] = ()
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIAL + (len(self.words) or NUM_BYTES)


class SmallTokenizer:
    """Captions to token ids: one for each word and punctuation mark, or for each byte, then the end token."""

    def __init__(self, config: SmallT5Config) -> None:
        self._ids = {word: NUM_SPECIAL + index for index, word in enumerate(config.words)}

    def __call__(self, caption: str) -> list[int]:
        """The caption's token ids, not cut; lower case, stripped."""
        text = caption.lower().strip()
        if not self._ids:
            # An unpaired surrogate becomes a question mark.
            return [NUM_SPECIAL + byte for byte in text.encode("utf-8", "replace")] + [END]
        return [self._ids.get(word, UNKNOWN) for word in re.findall(r"\w+|[^\w\s]", text)] + [END]


def pad_tokens(token_lists: Sequence[Sequence[int]], max_tokens: int) -> Tensor:
    """Token ids (B, T), int64: cut to `max_tokens` including the end token, padded on the right."""
    rows = [
        torch.tensor([*tokens[: max_tokens - 1], tokens[-1]] if len(tokens) > max_tokens else tokens)
        for tokens in token_lists
    ]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


class SelfAttention(nn.Module):
    """Attention without scaling of the scores and with a bias by the distance of two tokens."""

    def __init__(self, config: SmallT5Config, *, has_bias: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.q, self.k, self.v = (nn.Linear(config.width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.width, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(config.num_buckets, config.num_heads)

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor) -> Tensor:
        q, k, v = (layer(x_BTD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed_BHTK = F.scaled_dot_product_attention(q, k, v, bias_BHTT, scale=1.0)
        return self.o(mixed_BHTK.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x) with the tanh approximation of gelu."""

    def __init__(self, config: SmallT5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.width, config.ffn_width, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class AttentionLayer(nn.Module):
    """x + attention(RMSNorm(x))."""

    def __init__(self, config: SmallT5Config, *, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias=has_bias)
        self.layer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor) -> Tensor:
        return x_BTD + self.SelfAttention(self.layer_norm(x_BTD), bias_BHTT)


class FeedForwardLayer(nn.Module):
    """x + feed_forward(RMSNorm(x))."""

    def __init__(self, config: SmallT5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config)
        self.layer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    """An attention layer and a feed-forward layer."""

    def __init__(self, config: SmallT5Config, *, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, has_bias=has_bias), FeedForwardLayer(config)])

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        return feed_forward(attention(x_BTD, bias_BHTT))


class Stack(nn.Module):
    """All blocks, which share the bias of the first one, and the final norm."""

    def __init__(self, config: SmallT5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, has_bias=index == 0) for index in range(config.depth))
        self.final_layer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)


class SmallT5(nn.Module):
    """Token ids (B, T) to features (B, T, width)."""

    def __init__(self, config: SmallT5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.width)
        self.encoder = Stack(config)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                fan_in = 1 if "shared" in name else parameter.shape[1]
                nn.init.normal_(parameter, std=fan_in**-0.5)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Features of every token. Padding (0) is masked, and its features are meaningless."""
        x_BTD = self.shared(tokens_BT)
        bias_BHTT = self._bias(tokens_BT)
        for block in self.encoder.block:
            x_BTD = block(x_BTD, bias_BHTT)
        return self.encoder.final_layer_norm(x_BTD)

    def _bias(self, tokens_BT: Tensor) -> Tensor:
        """The bias of the scores, by distance; the lowest finite number for padding."""
        first: Any = self.encoder.block[0]
        embedding = first.layer[0].SelfAttention.relative_attention_bias
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        buckets_TT = distance_buckets(positions_T[None] - positions_T[:, None], self.config)
        bias_HTT = embedding(buckets_TT).permute(2, 0, 1)
        padding_B11T = (tokens_BT == PADDING)[:, None, None]
        return bias_HTT.masked_fill(padding_B11T, torch.finfo(bias_HTT.dtype).min)


def distance_buckets(distance: Tensor, config: SmallT5Config) -> Tensor:
    """The bucket of each distance key - query, int64.

    The first half of the buckets is for keys before the query, the second for keys after it. In each half, distances
    up to a quarter of all buckets have a bucket each; the other buckets widen logarithmically, and the last one takes
    all distances from `max_distance` on (section 2.1 of arXiv 1910.10683).
    """
    half = config.num_buckets // 2
    exact = half // 2
    length = distance.abs()
    growth = torch.log(length.clamp(min=1).float() / exact) / math.log(config.max_distance / exact)
    wide = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance > 0, half, 0) + torch.where(length < exact, length, wide)
