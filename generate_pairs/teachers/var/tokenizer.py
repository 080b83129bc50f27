"""VAR's multi-scale VQ tokenizer: a VQGAN encoder and decoder around a sum of maps at growing scales.

The latent map f_hat is the sum over scales of phi(up(codebook rows)): up is bicubic, phi one of a few shared
3x3 convolutions. Attribute names are the official tensor names, so that official state dicts load without a
translation table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.teachers.base import Tokenizer, TokenLayout
from generate_pairs.teachers.vqgan_blocks import (
    Downsample,
    ResidualBlock,
    Upsample,
    group_norm,
    spatial_attention,
)

IGNORED_BUFFERS = ("quantize.ema_vocab_hit_SV",)
"""Usage statistics that official files carry beside the weights; nothing here reads them."""


@dataclass(frozen=True)
class VarTokenizerConfig:
    """The published 256-pixel tokenizer by default.

    `scales` are side lengths, the last one that of the latent map. Every level of `ch_mult` but the last
    halves the resolution; `ch` must be a multiple of 32. `num_phi` convolutions are shared by the scales, and
    `phi_ratio` is the weight of the convolved map against the plain one.
    """

    vocab_size: int = 4096
    codebook_dim: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    num_phi: int = 4
    phi_ratio: float = 0.5
    image_channels: int = 3
    image_size: int = 256

    def __post_init__(self) -> None:
        if self.image_size != self.scales[-1] * self.downsampling:
            raise ValueError(
                f"image_size must be {self.scales[-1] * self.downsampling}, the last scale times "
                f"{self.downsampling}, by which {len(self.ch_mult)} levels reduce it, not {self.image_size}"
            )

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def layout(self) -> TokenLayout:
        """One AR step a scale: a side x side map, row-major."""
        return TokenLayout(tuple(side * side for side in self.scales))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return tuple(self.ch * mult for mult in self.ch_mult)


def phi_index(num_scales: int, num_phi: int) -> tuple[int, ...]:
    """Which shared convolution each scale uses: that of the nearest of `num_phi` ticks on [0, 1].

    Mathematical ties occur, among the official ten scales too, and rounding decides them: ticks and places
    must be computed in float64 exactly so.
    """
    margin = 1 / (3 * num_phi) if num_phi == 4 else 1 / (2 * num_phi)
    ticks = np.linspace(margin, 1 - margin, num_phi)
    places = (scale / max(num_scales - 1, 1) for scale in range(num_scales))
    return tuple(int(np.argmin(np.abs(ticks - place))) for place in places)


class AttentionBlock(nn.Module):
    """x + proj_out(attention over all pixels of norm(x)), one head, q, k and v from one 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=1)
        return x + self.proj_out(spatial_attention(q, k, v))


class Middle(nn.Module):
    """The blocks at the bottleneck: residual, attention, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, then the change to the next one.

    Residual and attention blocks take turns: `attn` holds one block per residual block, or none.
    """

    def __init__(self, channels_in: int, channels_out: int, num_blocks: int, has_attention: bool) -> None:
        super().__init__()
        inputs = (channels_in, *[channels_out] * (num_blocks - 1))
        self.block = nn.ModuleList(ResidualBlock(channels, channels_out) for channels in inputs)
        self.attn = nn.ModuleList(AttentionBlock(channels_out) for _ in inputs if has_attention)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class Encoder(nn.Module):
    """Images (B, image_channels, H, W) to (B, C, h, w)."""

    def __init__(self, config: VarTokenizerConfig) -> None:
        super().__init__()
        channels = config.channels
        self.conv_in = nn.Conv2d(config.image_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise((config.ch, *channels))):
            is_lowest = level == len(channels) - 1
            blocks = Level(before, after, config.num_res_blocks, has_attention=is_lowest)
            if not is_lowest:
                blocks.downsample = Downsample(after)
            self.down.append(blocks)
        self.mid = Middle(channels[-1])
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.codebook_dim, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, C, h, w) to images (B, image_channels, H, W).

    The official numbering is the encoder's: `up` runs from its last level, the lowest resolution, to level 0.
    """

    def __init__(self, config: VarTokenizerConfig) -> None:
        super().__init__()
        channels = config.channels
        self.conv_in = nn.Conv2d(config.codebook_dim, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1])
        self.up = nn.ModuleList()
        for level, (after, before) in enumerate(pairwise((*channels, channels[-1]))):
            is_lowest = level == len(channels) - 1
            blocks = Level(before, after, config.num_res_blocks + 1, has_attention=is_lowest)
            if level != 0:
                blocks.upsample = Upsample(after)
            self.up.append(blocks)
        self.norm_out = group_norm(config.ch * config.ch_mult[0])
        self.conv_out = nn.Conv2d(config.ch * config.ch_mult[0], config.image_channels, 3, padding=1)

    def forward(self, f_hat: Tensor) -> Tensor:
        x = self.mid(self.conv_in(f_hat))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class SharedConvolutions(nn.Module):
    """The phi convolutions; each serves the scales nearest to its place between coarse and fine."""

    def __init__(self, config: VarTokenizerConfig) -> None:
        super().__init__()
        self.ratio = config.phi_ratio
        self.index = phi_index(len(config.scales), config.num_phi)
        dim = config.codebook_dim
        self.qresi_ls = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(config.num_phi))

    def forward(self, h_BChw: Tensor, scale: int) -> Tensor:
        # Under autocast a convolution answers in bfloat16.
        residual_BChw = self.qresi_ls[self.index[scale]](h_BChw).to(h_BChw.dtype)
        return torch.lerp(h_BChw, residual_BChw, self.ratio)


class MultiScaleQuantizer(nn.Module):
    """Codebook rows of all scales, and the latent map they add up to."""

    def __init__(self, config: VarTokenizerConfig) -> None:
        super().__init__()
        self.scales = config.scales
        self.layout = config.layout
        self.quant_resi = SharedConvolutions(config)
        self.embedding = nn.Embedding(config.vocab_size, config.codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / config.vocab_size, 1.0 / config.vocab_size)

    def upsampled(self, rows_BsC: Tensor, scale: int) -> Tensor:
        """What one scale adds to f_hat: phi(up(its rows (B, s, C))), (B, C, h, w)."""
        side, full = self.scales[scale], self.scales[-1]
        map_BCpp = rows_BsC.transpose(1, 2).unflatten(2, (side, side))
        if side != full:
            map_BCpp = F.interpolate(map_BCpp, size=(full, full), mode="bicubic")
        return self.quant_resi(map_BCpp, scale)

    def shrunk(self, map_BChw: Tensor, scale: int) -> Tensor:
        """A latent map averaged to a scale's resolution, row-major: (B, s, C)."""
        side = self.scales[scale]
        return F.adaptive_avg_pool2d(map_BChw, side).flatten(2).transpose(1, 2)

    def nearest(self, vectors_BsC: Tensor) -> Tensor:
        """Tokens (B, s), int64, of the codebook rows nearest to vectors."""
        codebook_VC = self.embedding.weight
        # |z - c|^2 = |z|^2 + |c|^2 - 2 <z, c>, and |z|^2 does not decide which row is nearest.
        half_squares_V = 0.5 * codebook_VC.square().sum(-1)
        return (vectors_BsC @ codebook_VC.T - half_squares_V).argmax(-1)

    def accumulate(self, rows_BLC: Tensor) -> Iterator[Tensor]:
        """f_hat (B, C, h, w) after each scale, a new tensor each; ends where the rows end."""
        f_hat_BChw: Tensor | None = None
        for scale in range(len(self.scales)):
            span = self.layout.span(scale)
            if span.stop > rows_BLC.shape[1]:
                return
            added_BChw = self.upsampled(rows_BLC[:, span], scale)
            f_hat_BChw = added_BChw if f_hat_BChw is None else f_hat_BChw + added_BChw
            yield f_hat_BChw

    def forward(self, f_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise an encoder's output (B, C, h, w), each scale what the scales before it left over.

        Returns:
            Tokens (B, L), int64, and f_hat (B, C, h, w), differentiable in the codebook and in phi; the
            straight-through latent is `f + (f_hat - f).detach()`.
        """
        residual_BChw, f_hat_BChw = f_BChw.detach(), torch.zeros_like(f_BChw)
        tokens = []
        for scale in range(len(self.scales)):
            tokens_Bs = self.nearest(self.shrunk(residual_BChw, scale))
            added_BChw = self.upsampled(self.embedding(tokens_Bs), scale)
            residual_BChw, f_hat_BChw = residual_BChw - added_BChw.detach(), f_hat_BChw + added_BChw
            tokens.append(tokens_Bs)
        return torch.cat(tokens, dim=1), f_hat_BChw


class VarTokenizer(Tokenizer):
    """The VQ model: encoder, codebook at all scales, decoder."""

    encoding_modules = ("encoder", "quant_conv")

    def __init__(self, config: VarTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = MultiScaleQuantizer(config)
        self.quant_conv = nn.Conv2d(config.codebook_dim, config.codebook_dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.codebook_dim, 3, padding=1)

    @property
    def codebook_VC(self) -> Tensor:
        return self.quantize.embedding.weight

    def encode_embeddings(self, images_BIHW: Tensor) -> Tensor:
        """Images in [-1, 1] to the latent map f (B, C, h, w) before quantisation."""
        return self.quant_conv(self.encoder(images_BIHW))

    def encode(self, images_BIHW: Tensor) -> Tensor:
        tokens_BL, _ = self.quantize(self.encode_embeddings(images_BIHW))
        return tokens_BL

    def f_hat(self, embeddings_BLC: Tensor) -> Tensor:
        """The latent map (B, C, h, w) that embeddings add up to: those of all scales, or of the first few.

        Raises:
            ValueError: the embeddings end in the middle of a scale.
        """
        starts, length = self.quantize.layout.starts, embeddings_BLC.shape[1]
        if length not in starts[1:]:
            raise ValueError(f"{length} embeddings are no whole number of scales, which end at {starts[1:]}")
        *_, f_hat_BChw = self.quantize.accumulate(embeddings_BLC)
        return f_hat_BChw

    def next_inputs(self, tokens_BL: Tensor) -> Tensor:
        """What the forced transformer reads: (B, L - p_0^2, C), one row for every token after scale 0.

        A scale's rows are f_hat so far, averaged to that scale's resolution (official `idxBl_to_var_input`).
        """
        embeddings_BLC = self.embed(tokens_BL[:, : self.quantize.layout.starts[-2]])
        f_hats = self.quantize.accumulate(embeddings_BLC)
        inputs = [self.quantize.shrunk(f_hat, scale) for scale, f_hat in enumerate(f_hats, start=1)]
        return torch.cat(inputs, dim=1) if inputs else embeddings_BLC

    def decode_f_hat(self, f_hat_BChw: Tensor) -> Tensor:
        """A latent map (B, C, h, w) to images (B, channels, height, width), not clamped."""
        return self.decoder(self.post_quant_conv(f_hat_BChw))

    def decode(self, embeddings_BLC: Tensor) -> Tensor:
        return self.decode_f_hat(self.f_hat(embeddings_BLC))
