"""The student's model: one network pass from a state of the trajectory to the whole sequence, either family.

Around the family's network (noise/data embedding, token head, continuous head) it adds what both families share: which
positions are data, and how the two heads' outputs become one sequence.
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
from generate_pairs.compute.packed_linear import pack_linears
from generate_pairs.teachers.base import TextCondition, Texts, Tokenizer, TokenLayout, takes_text


@dataclass(frozen=True)
class TokenSequence:
    """A finished sequence: what the decoder reads, and the tokens it stands for."""

    embeddings_BLC: Tensor
    tokens_BL: Tensor


class StudentModel(nn.Module):
    """A family's network with the codebook, the layout and the sampling settings it was trained for."""

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
        """The captions that labels are numbers of, see `with_texts`; never saved."""
        self.register_buffer("starts", torch.tensor(layout.starts), persistent=False)

    @property
    def is_text_conditional(self) -> bool:
        """Whether labels are numbers of captions."""
        return takes_text(self.network.config)

    @property
    def num_classes(self) -> int:
        """How many labels there are; of captions, those it was told."""
        if self.is_text_conditional:
            return 0 if self.texts is None else len(self.texts.captions)
        return self.network.config.num_classes

    def with_texts(self, texts: Texts | None) -> Self:
        """The same student, sharing all weights, whose labels are the numbers of these captions."""
        student = copy.copy(self)
        student.texts = texts
        return student

    def forward(self, states_BLC: Tensor, timestep_B: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the final sequence from states of the trajectory.

        Args:
            states_BLC: codebook rows in the first `timestep` AR steps, noise after them.
            timestep_B: AR steps that are already data, int64 in 0..S.
            labels_B: class labels or numbers of captions, int64.

        Returns:
            Logits (B, L, V) of the token head and embeddings (B, L, C) of the continuous head.

        Raises:
            ValueError: the teacher is conditioned on text, and nobody told the student captions.
        """
        return self.network(states_BLC, self.starts[timestep_B], self._condition(labels_B))

    def _condition(self, labels_B: Tensor) -> Tensor | TextCondition:
        if self.is_text_conditional and self.texts is None:
            raise ValueError("this student draws images for captions: see `with_texts`")
        return labels_B if self.texts is None else self.texts(labels_B)

    def finish(self, states_BLC: Tensor, timestep: int, labels_B: Tensor) -> TokenSequence:
        """The final sequence in one pass.

        Positions that are data stay what they are (below the split: snapped to their nearest codebook row). The rest
        takes the codebook row of the token head's choice in AR steps below the split, and the continuous head's answer
        after it, as in the official sampler.
        """
        start, split, end = (
            self.layout.starts[step] for step in (timestep, self.split, self.layout.num_steps)
        )
        data_tokens_B = torch.full((len(states_BLC),), start, dtype=torch.int64, device=states_BLC.device)
        inputs = states_BLC, data_tokens_B, self._condition(labels_B)
        if start == 0 and split == end:
            logits_BLV = (
                self.network.logits(*inputs) if hasattr(self.network, "logits") else self.network(*inputs)[0]
            )
            tokens_BL = self.chosen(logits_BLV, states_BLC, timestep)
            return TokenSequence(self.tokenizer.embed(tokens_BL), tokens_BL)
        logits_BLV, embeddings_BLC = self.network(*inputs)
        tokens_BL = self.chosen(logits_BLV, states_BLC, timestep)
        embeddings_BLC = torch.cat([states_BLC[:, :start], embeddings_BLC[:, start:]], dim=1)
        for span in (slice(0, start), slice(max(start, split), end)):
            tokens_BL[:, span] = nearest_rows(embeddings_BLC[:, span], self.tokenizer.codebook_VC)
        rows_BLC = self.tokenizer.embed(tokens_BL)
        return TokenSequence(torch.cat([rows_BLC[:, :split], embeddings_BLC[:, split:]], dim=1), tokens_BL)

    def noise_weight_at(self, timestep: int) -> float:
        """The noise's weight in a pass from a timestep: of several that of the last trained one up to it."""
        if not isinstance(self.noise_weight, tuple):
            return self.noise_weight
        return self.noise_weight[bisect_right(self.timesteps, timestep) - 1]

    @cached_property
    def spread(self) -> float:
        """How far codebook rows are from their mean, root mean square; the codebook never changes."""
        return self.tokenizer.codebook_VC.var(0, correction=0).sum().sqrt().item()

    def chosen(self, logits_BLV: Tensor, noise_BLC: Tensor, timestep: int = 0) -> Tensor:
        """The token head's choice at each position, (B, L): the likeliest token, as far as its noise does not object.

        Where the head is unsure, its likeliest token is the same for much noise that the teacher maps to others, and
        variety is lost. In the map from noise to tokens (`generate_pairs.flow_map`) the logarithm of a row's weight
        at the state (1 - t) noise of time t is the logit and t / (1 - t) <noise, row>, but for a term without noise. So
        that product is added here, times the pass's `noise_weight` over the rows' spread. At weight 0 this is the
        official argmax.
        """
        weight = self.noise_weight_at(timestep)
        if not weight:
            return logits_BLV.argmax(-1)
        agreement_BLV = noise_BLC @ self.tokenizer.codebook_VC.T
        return torch.add(logits_BLV, agreement_BLV, alpha=weight / self.spread).argmax(-1)

    def pack(self) -> None:
        """Lays the network's weights out for sampling, see `Teacher.pack`; it can then neither train nor be saved."""
        pack_linears(self.network)


def nearest_rows(embeddings_BLC: Tensor, codebook_VC: Tensor) -> Tensor:
    """Tokens (B, L) of the codebook rows nearest to continuous embeddings."""
    affinity_BLV = embeddings_BLC @ codebook_VC.T - 0.5 * codebook_VC.square().sum(1)
    return affinity_BLV.argmax(-1)
