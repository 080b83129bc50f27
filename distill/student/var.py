"""The VAR student: the teacher's blocks on continuous tokens, one pass for all scales.

The condition has its own level before the scales. Attribute names are the official tensor names of VAR-DD.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.student.embedding_head import EmbeddingHead
from generate_pairs.compute.float32 import at_least_float32
from generate_pairs.teachers.var.teacher import VarTeacher
from generate_pairs.teachers.var.transformer import VarBackbone, VarConfig, linear


class VarStudent(VarBackbone):
    """The official DD_Model: maps data tokens followed by noise to logits and embeddings of all tokens.

    The output at a position predicts the token of that position from the inputs of earlier scales and its own.
    """

    def __init__(self, config: VarConfig, layerwise_embedding: bool = True) -> None:
        """Build the network with fresh weights; the `scales` of `config` do not include the condition.

        With `layerwise_embedding`, each block and the heads have their own linear map of the noise/data embedding.
        Otherwise the embedding itself is added everywhere.
        """
        # No dropout: noise determines every target, and dropout would add random state to checkpoints.
        config = replace(config, dropout=0.0)
        super().__init__(config, (1, *config.layout.tokens_per_step))
        self.layerwise_embedding = layerwise_embedding
        self.n_d_embed = nn.Embedding(2, config.width)
        nn.init.trunc_normal_(self.n_d_embed.weight, std=config.initial_std)
        num_maps = config.depth + 1 if layerwise_embedding else 0
        self.layerwise_n_d_embed = nn.ModuleList(linear(config, config.width, config.width) for _ in range(num_maps))
        self.final_layer_conti = EmbeddingHead(config.width, config.codebook_dim)
        diagonal_LL = torch.eye(len(self.level_L), dtype=torch.bool, device="cpu")
        mask_LL = (self.level_L[:, None] > self.level_L) | diagonal_LL
        self.register_buffer("mask_LL", mask_LL, persistent=False)

    def forward(self, x_BLC: Tensor, data_tokens_B: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute `Network.__call__`; outputs are at least float32, and class `num_classes` is the null class.

        `data_tokens_B` counts the tokens of complete scales.
        """
        h_BLD, condition_BD = self._hidden(x_BLC, data_tokens_B, labels_B)
        embeddings_BLC = self.final_layer_conti(h_BLD, condition_BD[:, None])
        return self._logits(h_BLD, condition_BD), at_least_float32(embeddings_BLC)

    def logits(self, x_BLC: Tensor, data_tokens_B: Tensor, labels_B: Tensor) -> Tensor:
        """Only the logits of `forward`."""
        return self._logits(*self._hidden(x_BLC, data_tokens_B, labels_B))

    def _logits(self, h_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        return at_least_float32(self.head(self.head_nm(h_BLD, condition_BD)))

    def _hidden(self, x_BLC: Tensor, data_tokens_B: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of the tokens (B, L, D), and the condition (B, D)."""
        condition_BD = self.class_emb(labels_B)
        condition_B1D = condition_BD[:, None]
        positions_P = torch.arange(len(self.level_L), device=data_tokens_B.device)
        # The condition, at position 0, always counts as data.
        is_data_BP = (positions_P <= data_tokens_B[:, None]).long()
        # There are only two inputs, noise (row 0) and data (row 1), so each linear map is applied to them once.
        embedding_2D = self.n_d_embed.weight
        *block_tables, last_table_2D = (
            [layer(embedding_2D) for layer in self.layerwise_n_d_embed]
            if self.layerwise_embedding
            else [embedding_2D] * (len(self.blocks) + 1)
        )

        x_BPD = torch.cat([condition_B1D + self.pos_start, self.word_embed(x_BLC)], dim=1) + self.positions()
        x_BPD = x_BPD + F.embedding(is_data_BP, self.n_d_embed.weight)
        for block, modulation, table_2D in zip(self.blocks, self.modulations(condition_BD), block_tables, strict=True):
            data_embedding_BPD = F.embedding(is_data_BP, table_2D)
            x_BPD = block(x_BPD, modulation, self.mask_LL, between_BLD=data_embedding_BPD)
        return (x_BPD + F.embedding(is_data_BP, last_table_2D))[:, 1:], condition_BD

    @torch.no_grad()
    def initialise_from_teacher(self, teacher: VarTeacher) -> None:
        """Copy the shared weights; the teacher's first scale becomes the condition.

        In `pos_1LC` and `lvl_embed`, row 0 goes to the condition, row 1 (the first scale) keeps its fresh values,
        and later scales keep their rows. The official initialiser overwrites class 1 instead of level 1; here all
        classes are copied.

        Raises:
            ValueError: A tensor of the teacher does not fit this student.
        """
        state = teacher.transformer.state_dict()
        merged = self.state_dict()
        if missing := sorted(state.keys() - merged.keys()):
            raise ValueError(f"the teacher has {missing[0]}, which this student does not have")
        try:
            for name, tensor in state.items():
                if name == "pos_1LC":
                    tensor = torch.cat([tensor[:, :1], merged[name][:, 1:2], tensor[:, 1:]], dim=1)
                elif name == "lvl_embed.weight":
                    tensor = torch.cat([tensor[:1], merged[name][1:2], tensor[1:]])
                merged[name] = tensor
            self.load_state_dict(merged)
        except RuntimeError as error:
            raise ValueError(f"the teacher does not fit the student: {error}") from error
