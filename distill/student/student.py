"""The public student class: created from a teacher, loaded from an export, sampled and exported."""

from __future__ import annotations

import copy
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
    refuse_invalid_architecture,
)
from distill.student.model import StudentModel
from distill.student.networks import student_factory
from distill.student.sampler import first_timesteps, max_batch_size, sample_images
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_strictly
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.registry import build_tokenizer, transformer_config
from generate_pairs.text.encoders import ENCODER_KEY, caption_features, recorded_encoder
from generate_pairs.text.feature_store import default_folder
from shards.core.errors import Refused
from shards.storage.files import commit_bytes, sha256_bytes


class Student(StudentModel):
    """A student that can be exported to, and loaded from, a folder."""

    def export(
        self, folder: Path, parameters: Mapping[str, Tensor] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write student.safetensors, tokenizer.safetensors and config.json, in that order.

        Args:
            folder: created if it does not exist.
            parameters: replace the network's own by name.
            dtype: converts all floating-point tensors; None keeps theirs.
        """
        student_bytes = _serialise({**self.network.state_dict(), **(parameters or {})}, dtype)
        tokenizer_bytes = _serialise(self.tokenizer.decoder_state(), dtype)
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
        """Load an export in eval mode, with a strict check of all tensors; no teacher is needed.

        Args:
            source: a folder, or `hf://OWNER/REPOSITORY[@REVISION]` on the Hugging Face Hub.
            device: where the student computes.

        Raises:
            Refused: The folder is not an export, or a file is missing, damaged or belongs to another export.
            Failed: The download failed.
        """
        folder = export_folder(source)
        config = read_export_config(folder)
        student = cls._from_config(config, folder)
        load_strictly(student.tokenizer, *read_tensors(folder, "tokenizer", config.tokenizer_sha256))
        load_strictly(student.network, *read_tensors(folder, "student", config.student_sha256))
        return student.to(device).eval().requires_grad_(False)

    @classmethod
    def load_without_weights(cls, source: Path | str) -> Student:
        """Load only config.json of an export; the networks are on the meta device. Raises as `from_pretrained`."""
        folder = export_folder(source, (CONFIG_FILE,))
        return cls._from_config(read_export_config(folder), folder)

    @classmethod
    def _from_config(cls, config: ExportConfig, folder: Path) -> Student:
        with refuse_invalid_architecture(folder), on_meta_device():
            tokenizer = build_tokenizer(config.family, config.tokenizer).decoder_only()
            network_config = transformer_config(config.family, config.network)
            network = student_factory(config.family)(network_config, tokenizer.codebook_VC.shape[1])
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
        """Generate one image for each label, (N, 1 or 3, height, width) float32 in [0, 1]; image i uses noise i.

        Args:
            labels: A class for each image; for a text-conditional student, a caption or the index of one.
            steps: Number of network passes, at the student's first timesteps.
            seed: Seed of the noise.
            timesteps: Timesteps of the passes, ascending from 0; replaces `steps`.

        Raises:
            Refused: A label is out of range, captions are given to a class-conditional student, the text encoder is
                missing, numbers are given but no captions are set, or the steps or timesteps are invalid.
        """
        if isinstance(labels, str):
            raise Refused(f"labels must be a list: for one caption, give [{labels!r}]")
        requested, student = list(labels), self
        are_captions = {isinstance(label, str) for label in requested}
        if len(are_captions) > 1:
            raise Refused("labels must be either all captions or all numbers")
        if True in are_captions:
            student = self.with_captions([str(label) for label in requested], device=self.starts.device)
            requested = list(range(len(requested)))
        elif requested and self.is_text_conditional and self.texts is None:
            raise Refused("this student draws images for captions: give captions, or call `with_captions` first")
        passes = first_timesteps(self.timesteps, steps) if timesteps is None else timesteps
        labels_N, batch_size = np.array(requested, np.int64), max_batch_size(self.tokenizer.image_shape)
        images = [batch.images_BIHW for batch in sample_images(student, labels_N, seed, passes, batch_size)]
        return torch.cat(images) if images else torch.empty(0, *self.tokenizer.image_shape)

    def with_captions(
        self,
        captions: Sequence[str],
        encoder: str | None = None,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> Self:
        """A copy whose labels index these captions; missing text features are computed on first use.

        Args:
            captions: what labels 0, 1, ... mean.
            encoder: name or location of the text encoder; None for the recorded name.
            device: where missing text features are computed.
            folder: cache of text features; None for `default_folder`.

        Raises:
            Refused: The student is class-conditional or records no text encoder.
        """
        if not self.is_text_conditional:
            raise Refused("this student draws images for classes, not for captions: give labels")
        if self.lineage is None or ENCODER_KEY not in self.lineage:
            raise Refused(
                "this student's config.json names no text encoder, so captions cannot be encoded as in its training"
            )
        spec = recorded_encoder(self.lineage)
        spec = replace(spec, name=encoder or spec.name)
        return self.with_texts(caption_features(captions, spec, folder or default_folder(), device))

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
        """Create an untrained student; it has a copy of the teacher's frozen tokenizer.

        With `initialise`, it starts from the teacher's weights, otherwise from random ones. The other arguments are those
        of `ExportConfig` and `StudentConfig`.
        """
        teacher = loaded.teacher
        network = student_factory(loaded.family)(teacher.transformer.config, teacher.codebook_dim)
        if initialise:
            network.initialise_from_teacher(teacher)
        return cls(
            loaded.family,
            network,
            # A copy: the student moves to another device or dtype, the teacher does not.
            copy.deepcopy(teacher.tokenizer),
            teacher.layout,
            timesteps,
            split,
            fingerprint,
            num_pairs,
            lineage,
            noise_weight,
        )


def _serialise(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> bytes:
    """Safetensors bytes; `dtype` converts floating-point tensors."""
    return save(
        {name: (t.to(dtype or t.dtype) if t.is_floating_point() else t).contiguous() for name, t in tensors.items()}
    )
