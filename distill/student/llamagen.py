"""The LlamaGen student: the teacher's layers over continuous tokens, the whole sequence in one causal pass.

Attribute names are the official tensor names of LlamaGen-DD. No student of a text-conditional teacher was published: ours
has the teacher's caption embedder where the official one has its class embedding, and the mean of a caption's condition
tokens where the continuous head takes in the class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.student.embedding_head import EmbeddingHead
from generate_pairs.compute.float32 import at_least_float32
from generate_pairs.compute.packed_linear import Projection
from generate_pairs.teachers.base import TextCondition
from generate_pairs.teachers.llamagen.teacher import LlamaGenTeacher
from generate_pairs.teachers.llamagen.transformer import (
    Layer,
    LlamaGenConfig,
    caption_mask,
    condition_embedding,
    initialise,
    rotary_2d,
)


class LlamaGenStudent(nn.Module):
    """The official DDTransformer: data tokens, then noise, to logits and embeddings of all tokens.

    An output stands at its own token's position and sees the inputs up to and including it.
    """

    def __init__(self, config: LlamaGenConfig, codebook_dim: int) -> None:
        super().__init__()
        # Noise determines every target: there is nothing to regularise, and dropout would need its own state.
        self.config = config = replace(config, dropout=0.0)
        self.cls_embedding: Any = condition_embedding(config)
        self.tok_embeddings = nn.Linear(codebook_dim, config.width)
        self.n_d_embed = nn.Embedding(2, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.output = Projection(config.width, config.vocab_size)
        self.final_layer_conti = EmbeddingHead(config.width, codebook_dim)
        # Not a buffer: half-precision models must not round it, and those built on the meta device need it.
        self.rotation = rotary_2d(config)
        initialise(self, self.output)

    def forward(
        self, x_BLC: Tensor, data_tokens_B: Tensor, condition: Tensor | TextCondition
    ) -> tuple[Tensor, Tensor]:
        """One pass over the sequence.

        Args:
            x_BLC: codebook rows in the first `data_tokens_B` positions of each sample, noise after them.
            data_tokens_B: int64, 0..L.
            condition: classes (B,), int64, `num_classes` is the null class; or captions.

        Returns:
            logits (B, L, V) and embeddings (B, L, C), both at least float32.
        """
        h_BLD, pooled_B1D = self._hidden(x_BLC, data_tokens_B, condition)
        return self._logits(h_BLD), at_least_float32(self.final_layer_conti(h_BLD, pooled_B1D))

    def logits(self, x_BLC: Tensor, data_tokens_B: Tensor, condition: Tensor | TextCondition) -> Tensor:
        """The logits of `forward` alone."""
        return self._logits(self._hidden(x_BLC, data_tokens_B, condition)[0])

    def _logits(self, h_BLD: Tensor) -> Tensor:
        return at_least_float32(self.output(self.norm(h_BLD)))

    def _hidden(
        self, x_BLC: Tensor, data_tokens_B: Tensor, condition: Tensor | TextCondition
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of the tokens (B, L, D), and the mean of the condition's tokens (B, 1, D)."""
        if isinstance(condition, TextCondition):
            condition_BTD = self.cls_embedding.of(condition)
            mask = caption_mask(condition.seen_BT, self.config.num_tokens)
            pooled_B1D = condition_BTD.sum(1, keepdim=True) / condition.seen_BT.sum(1)[:, None, None]
        else:
            pooled_B1D = condition_BTD = self.cls_embedding(condition)
            mask = None
        num_condition = condition_BTD.shape[1]
        x_BPD = torch.cat([condition_BTD, self.tok_embeddings(x_BLC)], dim=1)
        x_BPD = x_BPD + self._kind(data_tokens_B, num_condition)
        rotation = self.rotation[self.config.num_condition_tokens - num_condition :].to(x_BPD.device)
        for layer in self.layers:
            x_BPD = layer(x_BPD, rotation, mask=mask)
        return x_BPD[:, num_condition:], pooled_B1D

    @torch.no_grad()
    def initialise_from_teacher(self, teacher: LlamaGenTeacher, least_squares: bool = True) -> None:
        """Copy what the two have in common: class or caption embedding, layers, last norm, token head.

        Args:
            teacher: of the same configuration.
            least_squares: also make `tok_embeddings` the affine map that brings codebook rows nearest the
                teacher's token embeddings. Else it keeps its initialisation, as the official student does.

        Raises:
            ValueError: the teacher's tensors do not fit this student.
        """
        transformer = teacher.transformer
        for name in ("cls_embedding", "layers", "norm", "output"):
            try:
                getattr(self, name).load_state_dict(getattr(transformer, name).state_dict())
            except RuntimeError as error:
                raise ValueError(f"the teacher's {name} do not fit the student's: {error}") from error
        if least_squares:
            weight_CD, bias_D = affine_fit(teacher.codebook_VC, transformer.tok_embeddings.weight)
            self.tok_embeddings.weight.copy_(weight_CD.T)
            self.tok_embeddings.bias.copy_(bias_D)

    def _kind(self, data_tokens_B: Tensor, num_condition: int) -> Tensor:
        """What marks the T + L positions as data (the condition always is) or noise: (B, T + L, D)."""
        noise_D, data_D = self.n_d_embed.weight.unbind()
        # The condition stands before position 0.
        positions_P = torch.arange(-num_condition, self.config.num_tokens, device=data_tokens_B.device)
        is_data_BP1 = (positions_P < data_tokens_B[:, None])[..., None]
        return torch.where(is_data_BP1, data_D, noise_D)


def affine_fit(inputs_VC: Tensor, outputs_VD: Tensor, ridge: float = 0.01) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (D,) of a regularised least-squares fit of outputs by inputs @ weight + bias, in float64.

    Noise fills all C dimensions evenly, codebook rows may lie close to a plane: without the ridge (a variance, in units
    of the codebook's) the fit would blow up what noise has across that plane and drown the rest.
    """
    inputs, outputs = inputs_VC.double().cpu(), outputs_VD.double().cpu()
    mean_C, mean_D = inputs.mean(0), outputs.mean(0)
    centred = inputs - mean_C
    covariance_CC = centred.T @ centred / len(inputs)
    floor = ridge * covariance_CC.diagonal().mean() * torch.eye(len(mean_C), dtype=torch.float64)
    weight_CD = torch.linalg.solve(covariance_CC + floor, centred.T @ (outputs - mean_D) / len(inputs))
    return weight_CD, mean_D - mean_C @ weight_CD
