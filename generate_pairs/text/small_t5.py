"""A text encoder with the shape of T5 (version 1.1), small enough to ship: words or bytes in, a feature for each out.

Attribute names are those of `T5EncoderModel` in transformers, which loads the same tensors.
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

from generate_pairs.compute.packed_linear import Projection

PADDING, END, UNKNOWN = 0, 1, 2
"""Numbers of T5's special tokens; everything else is counted from 3."""
NUM_SPECIAL = 3
NUM_BYTES = 256


@dataclass(frozen=True)
class SmallT5Config:
    """Shape of the encoder; `words` are the tokens that it knows, none for the bytes of UTF-8 as ByT5 has them."""

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


class Tokens:
    """Captions to token numbers: each word or sign that the encoder knows, or each byte, and the end at last."""

    def __init__(self, config: SmallT5Config) -> None:
        self._numbers = {word: NUM_SPECIAL + index for index, word in enumerate(config.words)}

    def __call__(self, caption: str) -> list[int]:
        """The caption's tokens, however many, the end after them; case and surrounding blanks do not matter."""
        text = caption.lower().strip()
        if not self._numbers:
            # What is no character of its own, as half of a pair of surrogates, is a question mark.
            return [NUM_SPECIAL + byte for byte in text.encode("utf-8", "replace")] + [END]
        return [self._numbers.get(word, UNKNOWN) for word in re.findall(r"\w+|[^\w\s]", text)] + [END]


def padded(token_lists: Sequence[Sequence[int]], max_tokens: int) -> Tensor:
    """Token numbers (B, T), int64, cut after `max_tokens`, the end kept, with padding after the shorter ones."""
    rows = [
        torch.tensor([*tokens[: max_tokens - 1], tokens[-1]] if len(tokens) > max_tokens else tokens)
        for tokens in token_lists
    ]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


class SelfAttention(nn.Module):
    """Attention whose scores are not divided by anything and get a bias by how far two tokens are apart."""

    def __init__(self, config: SmallT5Config, *, has_bias: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.q, self.k, self.v = (Projection(config.width, inner) for _ in range(3))
        self.o = Projection(inner, config.width)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(config.num_buckets, config.num_heads)

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor) -> Tensor:
        q, k, v = (
            layer(x_BTD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed_BHTK = F.scaled_dot_product_attention(q, k, v, bias_BHTT, scale=1.0)
        return self.o(mixed_BHTK.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x), the gelu by its tanh."""

    def __init__(self, config: SmallT5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (Projection(config.width, config.ffn_width) for _ in range(2))
        self.wo = Projection(config.ffn_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class AttentionLayer(nn.Module):
    """Attention on a root-mean-square normalised input, added to it."""

    def __init__(self, config: SmallT5Config, *, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias=has_bias)
        self.layer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor) -> Tensor:
        return x_BTD + self.SelfAttention(self.layer_norm(x_BTD), bias_BHTT)


class FeedForwardLayer(nn.Module):
    """Feed-forward on a root-mean-square normalised input, added to it."""

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
    """All blocks, which share the first one's bias, and the last norm."""

    def __init__(self, config: SmallT5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, has_bias=index == 0) for index in range(config.depth))
        self.final_layer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)


class SmallT5(nn.Module):
    """Token numbers (B, T) to features (B, T, width)."""

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
        """Features of every token; those of padding (0) mean nothing, and nothing sees it."""
        x_BTD = self.shared(tokens_BT)
        bias_BHTT = self._bias(tokens_BT)
        for block in self.encoder.block:
            x_BTD = block(x_BTD, bias_BHTT)
        return self.encoder.final_layer_norm(x_BTD)

    def _bias(self, tokens_BT: Tensor) -> Tensor:
        """What is added to the scores: by distance, and so low for padding that it has no weight."""
        first: Any = self.encoder.block[0]
        embedding = first.layer[0].SelfAttention.relative_attention_bias
        places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        buckets_TT = distance_buckets(places_T[None] - places_T[:, None], self.config)
        bias_HTT = embedding(buckets_TT).permute(2, 0, 1)
        padding_B11T = (tokens_BT == PADDING)[:, None, None]
        return bias_HTT.masked_fill(padding_B11T, torch.finfo(bias_HTT.dtype).min)


def distance_buckets(distance: Tensor, config: SmallT5Config) -> Tensor:
    """The bucket of each distance key - query, int64: keys before in the first half, keys after in the second.

    In each half, one bucket for each of the first distances up to a quarter of all buckets, then buckets that widen as
    powers, the last one for everything from `max_distance` on (section 2.1 of arXiv 1910.10683).
    """
    half = config.num_buckets // 2
    exact = half // 2
    apart = distance.abs()
    growth = torch.log(apart.clamp(min=1).float() / exact) / math.log(config.max_distance / exact)
    wide = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance > 0, half, 0) + torch.where(apart < exact, apart, wide)
