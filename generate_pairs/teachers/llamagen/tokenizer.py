"""LlamaGen's VQ tokenizer: a VQGAN encoder and decoder around one square grid of codebook rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.teachers.vqgan_blocks import (
    OfficialNames,
    ResolutionLevels,
    VqganTokenizer,
    group_norm,
    nearest_rows,
    new_codebook,
    spatial_attention,
)

IGNORED_BUFFERS = ("quantize.codebook_used",)
"""Usage statistics in official files that this code does not read."""


@dataclass(frozen=True)
class LlamaGenTokenizerConfig(ResolutionLevels):
    """The defaults are VQ-16; VQ-8 is `ch_mult=(1, 2, 2, 4)`.

    Every level of `ch_mult` except the last halves the resolution; `ch` must be a multiple of 32.
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
    def latent_size(self) -> int:
        """Side of the token grid: L = latent_size**2."""
        return self.image_size // self.downsampling


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


NAMES = OfficialNames(
    down="conv_blocks",
    up="conv_blocks",
    up_from_lowest=True,
    residual="res",
    middle=("0", "1", "2"),
    attention=AttentionBlock,
)


class Quantizer(nn.Module):
    """Nearest codebook row, on the unit sphere if rows are normalised."""

    def __init__(self, vocab_size: int, codebook_dim: int, l2_normalised: bool) -> None:
        super().__init__()
        self.l2_normalised = l2_normalised
        self.embedding = new_codebook(vocab_size, codebook_dim)

    def project(self, vectors: Tensor) -> Tensor:
        """Vectors (..., C) projected to the unit sphere if `l2_normalised`, else unchanged."""
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
        tokens_BL = nearest_rows(self.project(h_BChw.flatten(2).transpose(1, 2)), codebook_VC)
        rows_BLC = F.embedding(tokens_BL, codebook_VC)
        return tokens_BL, rows_BLC.transpose(1, 2).reshape(h_BChw.shape)


class LlamaGenTokenizer(VqganTokenizer):
    """The VQ model: encoder, codebook of one resolution, decoder."""

    def __init__(self, config: LlamaGenTokenizerConfig) -> None:
        super().__init__(config, config.z_channels, NAMES)
        self.quantize = Quantizer(config.vocab_size, config.codebook_dim, config.l2_normalised)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    @property
    def codebook_VC(self) -> Tensor:
        return self.quantize.codebook_VC

    def decode(self, embeddings_BLC: Tensor) -> Tensor:
        """Embeddings (B, L, C), row-major, to images (B, channels, height, width).

        Embeddings are not normalised: a student's continuous predictions need not be on the sphere.
        """
        side = self.config.latent_size
        z_BChw = embeddings_BLC.transpose(1, 2).unflatten(2, (side, side))
        return self.decoder(self.post_quant_conv(z_BChw))
