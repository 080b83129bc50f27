"""The LlamaGen student: the teacher's layers on continuous tokens, one causal pass for the whole sequence.

Attribute names are the official tensor names of LlamaGen-DD. No text-conditional student was published. Here it has the
teacher's caption embedder in place of the class embedding, and the continuous head receives the mean of the caption's
condition tokens in place of the class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.student.embedding_head import EmbeddingHead
from generate_pairs.compute.float32 import at_least_float32
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
    """The official DDTransformer: maps data tokens followed by noise to logits and embeddings of all tokens.

    The output at a position predicts the token of that position from the inputs up to and including it.
    """

    def __init__(self, config: LlamaGenConfig, codebook_dim: int) -> None:
        super().__init__()
        # No dropout: noise determines every target, and dropout would add random state to checkpoints.
        self.config = config = replace(config, dropout=0.0)
        self.cls_embedding: Any = condition_embedding(config)
        self.tok_embeddings = nn.Linear(codebook_dim, config.width)
        self.n_d_embed = nn.Embedding(2, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.output = nn.Linear(config.width, config.vocab_size, bias=False)
        self.final_layer_conti = EmbeddingHead(config.width, codebook_dim)
        # Not a buffer: it must keep float32 in half-precision models and its values on the meta device.
        self.rotation = rotary_2d(config)
        initialise(self, self.output)

    def forward(self, x_BLC: Tensor, data_tokens_B: Tensor, condition: Tensor | TextCondition) -> tuple[Tensor, Tensor]:
        """Compute `Network.__call__`; outputs are at least float32, and class `num_classes` is the null class."""
        h_BLD, pooled_B1D = self._hidden(x_BLC, data_tokens_B, condition)
        return self._logits(h_BLD), at_least_float32(self.final_layer_conti(h_BLD, pooled_B1D))

    def logits(self, x_BLC: Tensor, data_tokens_B: Tensor, condition: Tensor | TextCondition) -> Tensor:
        """Only the logits of `forward`."""
        return self._logits(self._hidden(x_BLC, data_tokens_B, condition)[0])

    def _logits(self, h_BLD: Tensor) -> Tensor:
        return at_least_float32(self.output(self.norm(h_BLD)))

    def _hidden(self, x_BLC: Tensor, data_tokens_B: Tensor, condition: Tensor | TextCondition) -> tuple[Tensor, Tensor]:
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
        # Mark positions as data or noise. The condition, which precedes position 0, always counts as data.
        positions_P = torch.arange(-num_condition, self.config.num_tokens, device=data_tokens_B.device)
        is_data_BP1 = (positions_P < data_tokens_B[:, None])[..., None]
        noise_D, data_D = self.n_d_embed.weight.unbind()
        x_BPD = x_BPD + torch.where(is_data_BP1, data_D, noise_D)
        rotation = self.rotation[self.config.num_condition_tokens - num_condition :].to(x_BPD.device)
        for layer in self.layers:
            x_BPD = layer(x_BPD, rotation, mask=mask)
        return x_BPD[:, num_condition:], pooled_B1D

    @torch.no_grad()
    def initialise_from_teacher(self, teacher: LlamaGenTeacher, least_squares: bool = True) -> None:
        """Copy the shared weights: class or caption embedding, layers, last norm, token head.

        With `least_squares`, also fit `tok_embeddings` as an affine map from codebook rows to the teacher's token
        embeddings. Otherwise it keeps its initialisation, as in the official student.

        Raises:
            ValueError: A tensor of the teacher does not fit this student.
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


def affine_fit(inputs_VC: Tensor, outputs_VD: Tensor, ridge: float = 0.01) -> tuple[Tensor, Tensor]:
    """Fit outputs by inputs @ weight + bias with ridge regression; returns weight (C, D) and bias (D,) in float64.

    `ridge` is a variance in units of the codebook's. Codebook rows can be close to a plane, but noise fills all C
    dimensions: without the ridge, the fit amplifies noise perpendicular to that plane until it dominates.
    """
    inputs, outputs = inputs_VC.double().cpu(), outputs_VD.double().cpu()
    mean_C, mean_D = inputs.mean(0), outputs.mean(0)
    centred = inputs - mean_C
    covariance_CC = centred.T @ centred / len(inputs)
    floor = ridge * covariance_CC.diagonal().mean() * torch.eye(len(mean_C), dtype=torch.float64)
    weight_CD = torch.linalg.solve(covariance_CC + floor, centred.T @ (outputs - mean_D) / len(inputs))
    return weight_CD, mean_D - mean_C @ weight_CD
