"""The student: one network pass from a state of the trajectory to the whole sequence, either family.

Around the family's network (noise/data embedding, token head, continuous head) stands what both share: which
positions are data, how the two heads' answers become one sequence, and the export folder that sampling needs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from distill.config import NoiseWeight
from distill.student.export import (
    CONFIG_FILE,
    SCHEMA_VERSION,
    ExportConfig,
    export_folder,
    read_export_config,
    read_tensors,
    refusing_misfits,
)
from distill.student.model import TokenSequence, nearest_rows
from distill.student.networks import build_network
from generate_pairs.compute.packed_linear import pack_linears
from generate_pairs.teachers.base import TextCondition, Texts, Tokenizer, TokenLayout, takes_text
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_strictly
from generate_pairs.teachers.meta_device import blank
from generate_pairs.teachers.registry import build_tokenizer, transformer_config
from generate_pairs.text.encoders import ENCODER_KEY, recorded_encoder, texts_of
from generate_pairs.text.feature_store import default_folder
from shards.core.errors import Refused
from shards.storage.files import commit_bytes, sha256_bytes


class Student(nn.Module):
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
        """Captions that labels are numbers of, where the teacher is conditioned on text; nobody keeps them here."""
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
            raise ValueError("this student draws images for captions: set its `texts` first")
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

    def export(self, folder: Path) -> None:
        """Write what sampling needs: student.safetensors, tokenizer.safetensors and config.json, in that order."""
        student_bytes = save(
            {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        )
        decoder = self.tokenizer.decoder_state()
        tokenizer_bytes = save({name: tensor.contiguous() for name, tensor in decoder.items()})
        config = ExportConfig(
            schema_version=SCHEMA_VERSION,
            family=self.family,
            network=asdict(self.network.config),
            tokenizer=asdict(self.tokenizer.config),
            tokens_per_step=self.layout.tokens_per_step,
            timesteps=self.timesteps,
            split=self.split,
            noise_weight=self.noise_weight,
            fingerprint=self.fingerprint,
            num_pairs=self.num_pairs,
            lineage=None if self.lineage is None else dict(self.lineage),
            student_sha256=sha256_bytes(student_bytes),
            tokenizer_sha256=sha256_bytes(tokenizer_bytes),
        )
        commit_bytes(folder / "student.safetensors", student_bytes)
        commit_bytes(folder / "tokenizer.safetensors", tokenizer_bytes)
        commit_bytes(folder / CONFIG_FILE, config.to_bytes())

    @classmethod
    def from_pretrained(cls, source: Path | str, device: torch.device | str = "cpu") -> Student:
        """Load an export, strictly, in eval mode; no teacher is needed.

        Args:
            source: its folder, or a repository on the Hugging Face Hub as `hf://OWNER/REPOSITORY[@REVISION]`.
            device: where it shall compute.

        Raises:
            Refused: the folder is no export, or one of its files is missing, damaged or another export's.
            Failed: the download failed.
        """
        folder = export_folder(source)
        config = read_export_config(folder)
        student = cls._of(config, folder)
        load_strictly(student.tokenizer, *read_tensors(folder, "tokenizer", config.tokenizer_sha256))
        load_strictly(student.network, *read_tensors(folder, "student", config.student_sha256))
        return student.to(device).eval().requires_grad_(False)

    @classmethod
    def shape_of(cls, source: Path | str) -> Student:
        """An export without its weights, its networks on the meta device: all that config.json tells.

        Raises:
            Refused, Failed: as `from_pretrained`.
        """
        folder = export_folder(source, (CONFIG_FILE,))
        return cls._of(read_export_config(folder), folder)

    @classmethod
    def _of(cls, config: ExportConfig, folder: Path) -> Student:
        with refusing_misfits(folder), blank():
            tokenizer = build_tokenizer(config.family, config.tokenizer).decoder_only()
            network_config = transformer_config(config.family, config.network)
            network = build_network(config.family, network_config, tokenizer.codebook_VC.shape[1])
        return cls(
            config.family,
            network,
            tokenizer,
            TokenLayout(config.tokens_per_step),
            config.timesteps,
            config.split,
            config.fingerprint,
            config.num_pairs,
            config.lineage,
            config.noise_weight,
        )

    def sample(
        self,
        labels: Iterable[int] | Iterable[str],
        steps: int = 1,
        seed: int = 0,
        timesteps: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Images of these classes or captions, image i from noise i of the seed.

        Args:
            labels: a class for every image; or a caption, where the teacher is conditioned on text.
            steps: passes of the network, at the first of the timesteps that the student was trained at.
            seed: of the noise.
            timesteps: of the passes, instead of `steps`; ascending from 0.

        Returns:
            (N, 1 or 3, height, width) float32 in [0, 1].

        Raises:
            Refused: labels outside the student's classes, captions for a student of classes or whose text encoder is
                not here, numbers for one that was told no captions, more steps than it was trained for, or timesteps it
                cannot start from.
        """
        # The sampler is written in terms of students.
        from distill.student.sampler import first_timesteps, most_at_once, sample_images
        from distill.student.student import tell_captions

        if isinstance(labels, str):
            raise Refused(f"one caption is a list of one: [{labels!r}]")
        asked, told = list(labels), self.texts
        are_captions = {isinstance(label, str) for label in asked}
        if len(are_captions) > 1:
            raise Refused("labels are captions or numbers, and not both")
        if True in are_captions:
            tell_captions(self, [str(label) for label in asked], device=self.starts.device)
            asked = list(range(len(asked)))
        elif asked and self.is_text_conditional and told is None:
            raise Refused("this student draws images for captions: give texts, or set its `texts` first")
        passes = first_timesteps(self.timesteps, steps) if timesteps is None else timesteps
        try:
            batches = sample_images(
                self, np.array(asked, np.int64), seed, passes, most_at_once(self.tokenizer.image_shape)
            )
            images = [batch.images_BIHW for batch in batches]
        finally:
            self.texts = told
        return torch.cat(images) if images else torch.empty(0, *self.tokenizer.image_shape)

    def pack(self) -> None:
        """Lays the network's weights out for sampling, see `Teacher.pack`; it can then neither train nor be saved."""
        pack_linears(self.network)

    @classmethod
    def from_teacher(
        cls,
        loaded: LoadedTeacher,
        timesteps: tuple[int, ...],
        split: int,
        fingerprint: str,
        num_pairs: int,
        *,
        initialise: bool,
        lineage: Mapping[str, Any] | None = None,
        noise_weight: NoiseWeight = 0.0,
    ) -> Student:
        """A student for a teacher, ready to be trained; the tokenizer is the teacher's own, frozen.

        Args:
            loaded: the teacher.
            timesteps: where the student will be asked to finish the sequence, below the teacher's AR steps.
            split: AR steps below it come from the token head, at most all.
            fingerprint: of the pairs it will learn from.
            num_pairs: how many of them, the first training pairs.
            initialise: start from the teacher's weights rather than from random ones.
            lineage: of the pairs, which tells later what teacher the student's is; None where it is not known.
            noise_weight: see `chosen`.
        """
        teacher = loaded.teacher
        network = build_network(loaded.family, teacher.transformer.config, teacher.codebook_dim)
        if initialise:
            network.initialise_from_teacher(teacher)
        tokenizer, layout = teacher.tokenizer, teacher.layout
        return cls(
            loaded.family,
            network,
            tokenizer,
            layout,
            timesteps,
            split,
            fingerprint,
            num_pairs,
            lineage,
            noise_weight,
        )


def tell_captions(
    student: Student,
    captions: Sequence[str],
    encoder: str | None = None,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
) -> None:
    """Makes a student's labels the numbers of captions; what is missing of their features is computed when it is needed.

    Args:
        student: of a teacher that is conditioned on text.
        captions: in the order of their numbers.
        encoder: where its text encoder is found, if not under the name that the student records.
        device: where captions are encoded.
        folder: where features are kept; by default this host's, see `default_folder`.

    Raises:
        Refused: the student draws images for classes, or does not know its encoder.
    """
    if not student.is_text_conditional:
        raise Refused("this student draws images for classes, not for captions: give labels")
    if student.lineage is None or ENCODER_KEY not in student.lineage:
        raise Refused(
            "this student's config.json names no text encoder, so captions cannot be encoded as it learned them"
        )
    spec = recorded_encoder(student.lineage)
    student.texts = texts_of(
        captions, replace(spec, name=encoder or spec.name), folder or default_folder(), device
    )
