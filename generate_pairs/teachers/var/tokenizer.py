"""VAR's multi-scale VQ tokenizer: a VQGAN encoder and decoder around a sum of maps of growing resolution.

The latent map f_hat is the sum over scales of phi(up(codebook rows)): up is bicubic interpolation, phi one of a few
shared 3x3 convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.vqgan_blocks import (
    OfficialNames,
    ResolutionLevels,
    VqganTokenizer,
    group_norm,
    nearest_rows,
    new_codebook,
    spatial_attention,
)

IGNORED_BUFFERS = ("quantize.ema_vocab_hit_SV",)
"""Usage statistics in official files that this code does not read."""


@dataclass(frozen=True)
class VarTokenizerConfig(ResolutionLevels):
    """The defaults are the published 256-pixel tokenizer.

    `scales` are side lengths, the last one that of the latent map. Every level of `ch_mult` except the last halves
    the resolution; `ch` must be a multiple of 32. `num_phi` convolutions are shared by the scales, and `phi_ratio` is
    the weight of the convolved map against the plain one.
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
    def layout(self) -> TokenLayout:
        """One AR step per scale: a side x side map, row-major."""
        return TokenLayout(tuple(side * side for side in self.scales))


def phi_index(num_scales: int, num_phi: int) -> tuple[int, ...]:
    """The shared convolution of each scale: that of the nearest of `num_phi` ticks on [0, 1].

    Exact ties occur, also with the official ten scales, and rounding decides them: compute ticks and positions in
    float64 with exactly these operations.
    """
    margin = 1 / (3 * num_phi) if num_phi == 4 else 1 / (2 * num_phi)
    ticks = np.linspace(margin, 1 - margin, num_phi)
    positions = (scale / max(num_scales - 1, 1) for scale in range(num_scales))
    return tuple(int(np.argmin(np.abs(ticks - position))) for position in positions)


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


NAMES = OfficialNames(
    down="down",
    up="up",
    up_from_lowest=False,
    residual="block",
    middle=("block_1", "attn_1", "block_2"),
    attention=AttentionBlock,
)


class SharedConvolutions(nn.Module):
    """The phi convolutions, each shared by neighbouring scales, see `phi_index`."""

    def __init__(self, config: VarTokenizerConfig) -> None:
        super().__init__()
        self.ratio = config.phi_ratio
        self.index = phi_index(len(config.scales), config.num_phi)
        dim = config.codebook_dim
        self.qresi_ls = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(config.num_phi))

    def forward(self, h_BChw: Tensor, scale: int) -> Tensor:
        # Under autocast the convolution returns bfloat16.
        residual_BChw = self.qresi_ls[self.index[scale]](h_BChw).to(h_BChw.dtype)
        return torch.lerp(h_BChw, residual_BChw, self.ratio)


class MultiScaleQuantizer(nn.Module):
    """Codebook rows of all scales, and the latent map that is their sum."""

    def __init__(self, config: VarTokenizerConfig) -> None:
        super().__init__()
        self.scales = config.scales
        self.layout = config.layout
        self.quant_resi = SharedConvolutions(config)
        self.embedding = new_codebook(config.vocab_size, config.codebook_dim)

    def upsampled(self, rows_BsC: Tensor, scale: int) -> Tensor:
        """The term of one scale in f_hat: phi(up(its rows (B, s, C))), (B, C, h, w)."""
        side, full = self.scales[scale], self.scales[-1]
        map_BCpp = rows_BsC.transpose(1, 2).unflatten(2, (side, side))
        if side != full:
            map_BCpp = F.interpolate(map_BCpp, size=(full, full), mode="bicubic")
        return self.quant_resi(map_BCpp, scale)

    def shrunk(self, map_BChw: Tensor, scale: int) -> Tensor:
        """A latent map averaged to a scale's resolution, row-major: (B, s, C)."""
        side = self.scales[scale]
        return F.adaptive_avg_pool2d(map_BChw, side).flatten(2).transpose(1, 2)

    def accumulate(self, rows_BLC: Tensor) -> Iterator[Tensor]:
        """f_hat (B, C, h, w) after each scale, a new tensor each; ends after the last full scale of the rows."""
        f_hat_BChw: Tensor | None = None
        for scale in range(len(self.scales)):
            span = self.layout.span(scale)
            if span.stop > rows_BLC.shape[1]:
                return
            added_BChw = self.upsampled(rows_BLC[:, span], scale)
            f_hat_BChw = added_BChw if f_hat_BChw is None else f_hat_BChw + added_BChw
            yield f_hat_BChw

    def forward(self, f_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise an encoder's output (B, C, h, w); each scale quantises the residual of the scales before it.

        Returns:
            Tokens (B, L), int64, and f_hat (B, C, h, w), differentiable in the codebook and in phi; the
            straight-through latent is `f + (f_hat - f).detach()`.
        """
        residual_BChw, f_hat_BChw = f_BChw.detach(), torch.zeros_like(f_BChw)
        tokens = []
        for scale in range(len(self.scales)):
            tokens_Bs = nearest_rows(self.shrunk(residual_BChw, scale), self.embedding.weight)
            added_BChw = self.upsampled(self.embedding(tokens_Bs), scale)
            residual_BChw, f_hat_BChw = residual_BChw - added_BChw.detach(), f_hat_BChw + added_BChw
            tokens.append(tokens_Bs)
        return torch.cat(tokens, dim=1), f_hat_BChw


class VarTokenizer(VqganTokenizer):
    """The VQ model: encoder, codebook shared by all scales, decoder."""

    def __init__(self, config: VarTokenizerConfig) -> None:
        dim = config.codebook_dim
        super().__init__(config, dim, NAMES)
        self.quantize = MultiScaleQuantizer(config)
        self.quant_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(dim, dim, 3, padding=1)

    @property
    def codebook_VC(self) -> Tensor:
        return self.quantize.embedding.weight

    def f_hat(self, embeddings_BLC: Tensor) -> Tensor:
        """The latent map (B, C, h, w) of the embeddings of all scales, or of the first few.

        Raises:
            ValueError: the embeddings end in the middle of a scale.
        """
        starts, length = self.quantize.layout.starts, embeddings_BLC.shape[1]
        if length not in starts[1:]:
            raise ValueError(f"{length} embeddings are no whole number of scales, which end at {starts[1:]}")
        *_, f_hat_BChw = self.quantize.accumulate(embeddings_BLC)
        return f_hat_BChw

    def next_inputs(self, tokens_BL: Tensor) -> Tensor:
        """The input of the forced transformer: (B, L - p_0^2, C), one row for every token after scale 0.

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
