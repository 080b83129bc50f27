"""LlamaGen's VQ tokenizer: a VQGAN encoder and decoder around one square grid of codebook rows.

Attribute names are the official tensor names, so that official state dicts load without a translation table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.teachers.base import Tokenizer
from generate_pairs.teachers.vqgan_blocks import (
    Downsample,
    ResidualBlock,
    Upsample,
    group_norm,
    spatial_attention,
)

IGNORED_BUFFERS = ("quantize.codebook_used",)
"""Usage statistics that official files carry beside the weights; nothing here reads them."""


@dataclass(frozen=True)
class LlamaGenTokenizerConfig:
    """The VQ-16 layout by default; VQ-8 is `ch_mult=(1, 2, 2, 4)`.

    Every level of `ch_mult` but the last halves the resolution; `ch` must be a multiple of 32.
    """

    vocab_size: int = 16384
    codebook_dim: int = 8
    l2_normalised: bool = True
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    image_channels: int = 3
    image_size: int = 256

    def __post_init__(self) -> None:
        if self.image_size % self.downsampling:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {self.downsampling}, "
                f"by which {len(self.ch_mult)} levels reduce it"
            )

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def latent_size(self) -> int:
        """Side of the token grid: L = latent_size**2."""
        return self.image_size // self.downsampling

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return tuple(self.ch * mult for mult in self.ch_mult)


class AttentionBlock(nn.Module):
    """x + proj_out(attention over all pixels of norm(x)), one head, a 1x1 convolution each for q, k and v."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.proj_out(spatial_attention(self.q(h), self.k(h), self.v(h)))


def middle(channels: int) -> nn.ModuleList:
    """The blocks at the bottleneck: residual, attention, residual."""
    return nn.ModuleList(
        [ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels)]
    )


class Level(nn.Module):
    """The blocks of one resolution, then the change to the next one.

    Residual and attention blocks take turns: `attn` holds one block per residual block, or none.
    """

    def __init__(self, channels_in: int, channels_out: int, num_blocks: int, has_attention: bool) -> None:
        super().__init__()
        inputs = (channels_in, *[channels_out] * (num_blocks - 1))
        self.res = nn.ModuleList(ResidualBlock(channels, channels_out) for channels in inputs)
        self.attn = nn.ModuleList(AttentionBlock(channels_out) for _ in inputs if has_attention)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class Encoder(nn.Module):
    """Images (B, image_channels, H, W) to (B, z_channels, h, w)."""

    def __init__(self, config: LlamaGenTokenizerConfig) -> None:
        super().__init__()
        channels = config.channels
        lowest = len(channels) - 1
        self.conv_in = nn.Conv2d(config.image_channels, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(zip((config.ch, *channels), channels, strict=False)):
            blocks = Level(before, after, config.num_res_blocks, has_attention=level == lowest)
            if level != lowest:
                blocks.downsample = Downsample(after)
            self.conv_blocks.append(blocks)
        self.mid = middle(channels[-1])
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, z_channels, h, w) to images (B, image_channels, H, W).

    The official numbering is the order of execution: level 0 is the lowest resolution, the encoder's last.
    """

    def __init__(self, config: LlamaGenTokenizerConfig) -> None:
        super().__init__()
        channels = config.channels[::-1]
        highest = len(channels) - 1
        self.conv_in = nn.Conv2d(config.z_channels, channels[0], 3, padding=1)
        self.mid = middle(channels[0])
        self.conv_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(zip((channels[0], *channels), channels, strict=False)):
            blocks = Level(before, after, config.num_res_blocks + 1, has_attention=level == 0)
            if level != highest:
                blocks.upsample = Upsample(after)
            self.conv_blocks.append(blocks)
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """Nearest codebook row, on the unit sphere where rows are normalised."""

    def __init__(self, vocab_size: int, codebook_dim: int, l2_normalised: bool) -> None:
        super().__init__()
        self.l2_normalised = l2_normalised
        self.embedding = nn.Embedding(vocab_size, codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / vocab_size, 1.0 / vocab_size)

    def project(self, vectors: Tensor) -> Tensor:
        """Vectors (..., C) to where codebook rows lie: the unit sphere if `l2_normalised`, else unchanged."""
        return F.normalize(vectors, dim=-1, eps=1e-12) if self.l2_normalised else vectors

    @property
    def codebook_VC(self) -> Tensor:
        return self.project(self.embedding.weight)

    def forward(self, h_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise an encoder's output (B, C, h, w).

        Returns:
            Tokens (B, L), int64, row-major, and their rows (B, C, h, w), differentiable in the codebook.
        """
        codebook_VC = self.codebook_VC
        vectors_BLC = self.project(h_BChw.flatten(2).transpose(1, 2))
        # |x - c|^2 = |x|^2 + |c|^2 - 2 <x, c>, and |x|^2 does not decide which row is nearest.
        half_squares_V = 0.5 * codebook_VC.square().sum(-1)
        tokens_BL = (vectors_BLC @ codebook_VC.T - half_squares_V).argmax(-1)
        rows_BLC = F.embedding(tokens_BL, codebook_VC)
        return tokens_BL, rows_BLC.transpose(1, 2).reshape(h_BChw.shape)


class LlamaGenTokenizer(Tokenizer):
    """The VQ model: encoder, codebook of one resolution, decoder."""

    encoding_modules = ("encoder", "quant_conv")

    def __init__(self, config: LlamaGenTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.vocab_size, config.codebook_dim, config.l2_normalised)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    @property
    def codebook_VC(self) -> Tensor:
        return self.quantize.codebook_VC

    def encode_embeddings(self, images_BIHW: Tensor) -> Tensor:
        """Images in [-1, 1] to vectors (B, C, h, w) before quantisation and normalisation."""
        return self.quant_conv(self.encoder(images_BIHW))

    def encode(self, images_BIHW: Tensor) -> Tensor:
        tokens_BL, _ = self.quantize(self.encode_embeddings(images_BIHW))
        return tokens_BL

    def decode(self, embeddings_BLC: Tensor) -> Tensor:
        """Embeddings (B, L, C), row-major and taken as they are, to images (B, channels, height, width).

        They are not normalised: a student's continuous predictions need not lie on the sphere.
        """
        side = self.config.latent_size
        z_BChw = embeddings_BLC.transpose(1, 2).unflatten(2, (side, side))
        return self.decoder(self.post_quant_conv(z_BChw))
