"""The VQGAN encoder and decoder that both families' tokenizers use.

Attribute names are the official tensor names, so official state dicts load without a translation table. The names
differ between the families: `OfficialNames` contains what differs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.teachers.base import Tokenizer


class ResolutionLevels:
    """Properties of a tokenizer's configuration that follow from its `ch` and `ch_mult`."""

    ch: int
    ch_mult: tuple[int, ...]

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return tuple(self.ch * mult for mult in self.ch_mult)


@dataclass(frozen=True)
class OfficialNames:
    """How a family names and orders the modules of its VQGAN.

    Attributes:
        down: the encoder's levels.
        up: the decoder's levels.
        up_from_lowest: whether the decoder's level 0 is the lowest resolution, so that they are in order of execution.
        residual: the residual blocks of a level.
        middle: the three blocks at the bottleneck.
        attention: channels -> the family's attention block.
    """

    down: str
    up: str
    up_from_lowest: bool
    residual: str
    middle: tuple[str, str, str]
    attention: Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation of every VQGAN block: 32 groups, eps 1e-6."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x' + conv2(silu(norm2(conv1(silu(norm1(x)))))); x' is x, or its 1x1 convolution if the channel count changes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class Downsample(nn.Module):
    """Half the resolution: one zero row and column at the bottom right, then a 3x3 convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def spatial_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One attention head over all pixels; q, k, v and the result are (B, channels, h, w)."""
    B, channels, h, w = q.shape
    q, k, v = (t.reshape(B, channels, h * w).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, channels, h, w)


class Level(nn.Module):
    """The blocks of one resolution, then `resample` to the next one.

    Residual and attention blocks alternate; only the lowest resolution has attention.
    """

    def __init__(
        self, channels_in: int, channels_out: int, num_blocks: int, has_attention: bool, names: OfficialNames
    ) -> None:
        super().__init__()
        inputs = (channels_in, *[channels_out] * (num_blocks - 1))
        self.residual_name = names.residual
        blocks = nn.ModuleList(ResidualBlock(channels, channels_out) for channels in inputs)
        self.add_module(names.residual, blocks)
        self.attn = nn.ModuleList(names.attention(channels_out) for _ in inputs if has_attention)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.get_submodule(self.residual_name).children()):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


def middle(channels: int, names: OfficialNames) -> nn.Sequential:
    """The blocks at the bottleneck: residual, attention, residual."""
    first, attention, last = names.middle
    return nn.Sequential(
        OrderedDict(
            [
                (first, ResidualBlock(channels, channels)),
                (attention, names.attention(channels)),
                (last, ResidualBlock(channels, channels)),
            ]
        )
    )


class Encoder(nn.Module):
    """Images (B, image_channels, H, W) to (B, z_channels, h, w)."""

    def __init__(self, config: Any, z_channels: int, names: OfficialNames) -> None:
        super().__init__()
        channels, self.down_name = config.channels, names.down
        lowest = len(channels) - 1
        self.conv_in = nn.Conv2d(config.image_channels, config.ch, 3, padding=1)
        levels = nn.ModuleList()
        self.add_module(names.down, levels)
        for index, (before, after) in enumerate(pairwise((config.ch, *channels))):
            level = Level(before, after, config.num_res_blocks, index == lowest, names)
            if index != lowest:
                level.downsample = Downsample(after)
            levels.append(level)
        self.mid = middle(channels[-1], names)
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.get_submodule(self.down_name).children():
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, z_channels, h, w) to images (B, image_channels, H, W)."""

    def __init__(self, config: Any, z_channels: int, names: OfficialNames) -> None:
        super().__init__()
        channels = config.channels
        self.up_name, self.up_from_lowest = names.up, names.up_from_lowest
        lowest = len(channels) - 1
        self.conv_in = nn.Conv2d(z_channels, channels[-1], 3, padding=1)
        self.mid = middle(channels[-1], names)
        levels = nn.ModuleList()
        self.add_module(names.up, levels)
        order = list(enumerate(pairwise((*channels, channels[-1]))))
        for index, (after, before) in reversed(order) if names.up_from_lowest else order:
            level = Level(before, after, config.num_res_blocks + 1, index == lowest, names)
            if index != 0:
                level.upsample = Upsample(after)
            levels.append(level)
        self.norm_out = group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        levels = list(self.get_submodule(self.up_name).children())
        for level in levels if self.up_from_lowest else reversed(levels):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def new_codebook(vocab_size: int, codebook_dim: int) -> nn.Embedding:
    """A table of V codebook rows from the official starting point, uniform in [-1 / V, 1 / V]."""
    embedding = nn.Embedding(vocab_size, codebook_dim)
    nn.init.uniform_(embedding.weight, -1.0 / vocab_size, 1.0 / vocab_size)
    return embedding


def nearest_rows(vectors: Tensor, codebook_VC: Tensor) -> Tensor:
    """Tokens (...), int64, of the codebook rows nearest to vectors (..., C)."""
    # |x - c|^2 = |x|^2 + |c|^2 - 2 <x, c>, and |x|^2 is the same for every row.
    half_squares_V = 0.5 * codebook_VC.square().sum(-1)
    return (vectors @ codebook_VC.T - half_squares_V).argmax(-1)


class VqganTokenizer(Tokenizer):
    """Encoder and decoder of a VQ model; subclasses add `quantize`, `quant_conv` and `post_quant_conv`."""

    encoding_modules = ("encoder", "quant_conv")
    quantize: Any
    quant_conv: nn.Conv2d
    post_quant_conv: nn.Conv2d

    def __init__(self, config: Any, z_channels: int, names: OfficialNames) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.encoder = Encoder(config, z_channels, names)
        self.decoder = Decoder(config, z_channels, names)

    def encode_embeddings(self, images_BIHW: Tensor) -> Tensor:
        """Images in [-1, 1] to the latent map (B, C, h, w) before quantisation and normalisation."""
        return self.quant_conv(self.encoder(images_BIHW))

    def encode(self, images_BIHW: Tensor) -> Tensor:
        tokens_BL, _ = self.quantize(self.encode_embeddings(images_BIHW))
        return tokens_BL
