"""The student's model: one network pass from a trajectory state to the whole sequence, for any family.

The family's network has the noise/data embedding, the token head and the continuous head. The model determines which
positions are data and combines the outputs of the two heads into one sequence.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from distill.config import NoiseWeight
from generate_pairs.teachers.base import TextCondition, Texts, Tokenizer, TokenLayout, takes_text


@dataclass(frozen=True)
class TokenSequence:
    """A complete sequence: the decoder's input embeddings and the corresponding tokens."""

    embeddings_BLC: Tensor
    tokens_BL: Tensor


class StudentModel(nn.Module):
    """A family's network with the tokenizer, the token layout and the sampling settings."""

    starts: Tensor

    def __init__(
        self,
        family: str,
        network: Any,
        tokenizer: Tokenizer,
        layout: TokenLayout,
        timesteps: tuple[int, ...],
        split: int,
        fingerprint: str | None,
        num_pairs: int | None,
        lineage: Mapping[str, Any] | None = None,
        noise_weight: NoiseWeight = 0.0,
    ) -> None:
        super().__init__()
        self.family = family
        self.network = network
        self.tokenizer = tokenizer
        self.layout = layout
        self.timesteps = timesteps
        self.split = split
        self.fingerprint = fingerprint
        self.num_pairs = num_pairs
        self.lineage = lineage
        self.noise_weight = noise_weight
        self.texts: Texts | None = None
        """Captions indexed by labels, see `with_texts`; never saved."""
        self.register_buffer("starts", torch.tensor(layout.starts), persistent=False)

    @property
    def is_text_conditional(self) -> bool:
        """Whether labels are indices of captions."""
        return takes_text(self.network.config)

    @property
    def num_classes(self) -> int:
        """Number of labels; for a text-conditional student, the number of captions set."""
        if self.is_text_conditional:
            return 0 if self.texts is None else len(self.texts.captions)
        return self.network.config.num_classes

    def with_texts(self, texts: Texts | None) -> Self:
        """A copy that shares all weights and whose labels index these captions."""
        student = copy.copy(self)
        student.texts = texts
        return student

    def forward(self, states_BLC: Tensor, timestep_B: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Predict logits (B, L, V) of the token head and embeddings (B, L, C) of the continuous head.

        Args:
            states_BLC: Codebook rows in the first `timestep_B` AR steps, noise after them.
            timestep_B: Number of AR steps that are already data, int64 in 0..S.
            labels_B: Class labels or caption indices, int64.

        Raises:
            ValueError: The student is text-conditional, and no captions are set.
        """
        return self.network(states_BLC, self.starts[timestep_B], self._condition(labels_B))

    def _condition(self, labels_B: Tensor) -> Tensor | TextCondition:
        if self.is_text_conditional and self.texts is None:
            raise ValueError("this student needs captions: set them with `with_texts`")
        return labels_B if self.texts is None else self.texts(labels_B)

    def finish(self, states_BLC: Tensor, timestep: int, labels_B: Tensor) -> TokenSequence:
        """Predict the final sequence in one pass, as the official sampler.

        Positions that are already data stay unchanged; below the split they become their nearest codebook row. For
        the others, AR steps below the split take the codebook row that the token head chooses, and later AR steps
        take the output of the continuous head.
        """
        start, split, end = (self.layout.starts[step] for step in (timestep, self.split, self.layout.num_steps))
        data_tokens_B = torch.full((len(states_BLC),), start, dtype=torch.int64, device=states_BLC.device)
        inputs = states_BLC, data_tokens_B, self._condition(labels_B)
        if start == 0 and split == end:
            logits_BLV = self.network.logits(*inputs) if hasattr(self.network, "logits") else self.network(*inputs)[0]
            tokens_BL = self.choose_tokens(logits_BLV, states_BLC, timestep)
            return TokenSequence(self.tokenizer.embed(tokens_BL), tokens_BL)
        logits_BLV, embeddings_BLC = self.network(*inputs)
        tokens_BL = self.choose_tokens(logits_BLV, states_BLC, timestep)
        embeddings_BLC = torch.cat([states_BLC[:, :start], embeddings_BLC[:, start:]], dim=1)
        for span in (slice(0, start), slice(max(start, split), end)):
            tokens_BL[:, span] = nearest_rows(embeddings_BLC[:, span], self.tokenizer.codebook_VC)
        rows_BLC = self.tokenizer.embed(tokens_BL)
        return TokenSequence(torch.cat([rows_BLC[:, :split], embeddings_BLC[:, split:]], dim=1), tokens_BL)

    def noise_weight_at(self, timestep: int) -> float:
        """The noise weight of a pass: that of the last trained timestep up to this one."""
        if not isinstance(self.noise_weight, tuple):
            return self.noise_weight
        return self.noise_weight[bisect_right(self.timesteps, timestep) - 1]

    @cached_property
    def codebook_spread(self) -> float:
        """Root mean square distance of codebook rows from their mean; constant, as the codebook is frozen."""
        return self.tokenizer.codebook_VC.var(0, correction=0).sum().sqrt().item()

    def choose_tokens(self, logits_BLV: Tensor, noise_BLC: Tensor, timestep: int = 0) -> Tensor:
        """Choose a token at each position, (B, L): argmax of logit + noise_weight / codebook_spread * <noise, row>.

        If the head is uncertain, its most likely token is the same for many noise values that the teacher maps to
        different tokens, which reduces diversity. In the flow map (`generate_pairs.flow_map`), the log weight of a row
        in state (1 - t) noise at time t is the logit plus t / (1 - t) <noise, row>, up to a term that is independent of
        the noise. The product added here has the same form. With weight 0 this is the official argmax.
        """
        weight = self.noise_weight_at(timestep)
        if not weight:
            return logits_BLV.argmax(-1)
        similarity_BLV = noise_BLC @ self.tokenizer.codebook_VC.T
        return torch.add(logits_BLV, similarity_BLV, alpha=weight / self.codebook_spread).argmax(-1)


def nearest_rows(embeddings_BLC: Tensor, codebook_VC: Tensor) -> Tensor:
    """Tokens (B, L) of the nearest codebook rows."""
    affinity_BLV = embeddings_BLC @ codebook_VC.T - 0.5 * codebook_VC.square().sum(1)
    return affinity_BLV.argmax(-1)
