"""The student as people use it: built from a teacher, loaded from an export, sampled, exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

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
from distill.student.model import StudentModel
from distill.student.networks import build_network
from distill.student.sampler import first_timesteps, most_at_once, sample_images
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_strictly
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.registry import build_tokenizer, transformer_config
from generate_pairs.text.encoders import ENCODER_KEY, recorded_encoder, texts_of
from generate_pairs.text.feature_store import default_folder
from shards.core.errors import Refused
from shards.storage.files import commit_bytes, sha256_bytes


class Student(StudentModel):
    """A student with its files: built from a teacher, loaded, sampled and exported."""

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
        with refusing_misfits(folder), on_meta_device():
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
                not here, numbers for one without captions, more steps than it was trained for, or timesteps it
                cannot start from.
        """
        if isinstance(labels, str):
            raise Refused(f"one caption is a list of one: [{labels!r}]")
        requested, student = list(labels), self
        are_captions = {isinstance(label, str) for label in requested}
        if len(are_captions) > 1:
            raise Refused("labels are captions or numbers, and not both")
        if True in are_captions:
            student = self.with_captions([str(label) for label in requested], device=self.starts.device)
            requested = list(range(len(requested)))
        elif requested and self.is_text_conditional and self.texts is None:
            raise Refused("this student draws images for captions: give texts, or call `with_captions` first")
        passes = first_timesteps(self.timesteps, steps) if timesteps is None else timesteps
        labels_N, batch_size = np.array(requested, np.int64), most_at_once(self.tokenizer.image_shape)
        images = [batch.images_BIHW for batch in sample_images(student, labels_N, seed, passes, batch_size)]
        return torch.cat(images) if images else torch.empty(0, *self.tokenizer.image_shape)

    def with_captions(
        self,
        captions: Sequence[str],
        encoder: str | None = None,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> Self:
        """The same student, whose labels are the numbers of these captions; missing features are computed on first use.

        Args:
            captions: in the order of their numbers.
            encoder: where its text encoder is found, if not under the name that the student records.
            device: where captions are encoded.
            folder: where features are kept; by default this host's, see `default_folder`.

        Raises:
            Refused: the student draws images for classes, or does not know its encoder.
        """
        if not self.is_text_conditional:
            raise Refused("this student draws images for classes, not for captions: give labels")
        if self.lineage is None or ENCODER_KEY not in self.lineage:
            raise Refused(
                "this student's config.json names no text encoder, so captions cannot be encoded as it learned them"
            )
        spec = recorded_encoder(self.lineage)
        spec = replace(spec, name=encoder or spec.name)
        return self.with_texts(texts_of(captions, spec, folder or default_folder(), device))

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
