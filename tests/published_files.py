"""Published teachers and students made small for tests, and their files in the official formats."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.student.networks import student_factory
from distill.student.published import STUDENTS, PublishedStudent
from generate_pairs.teachers.published import TEACHERS, PublishedTeacher
from generate_pairs.teachers.registry import family_of

REAL = {"var": ("var-d16", "var-dd-d16"), "llamagen": ("llamagen-b-256", "llamagen-dd-b")}
"""The published teacher and student that the small ones of a family are derived from."""


def resized_teacher(name: str, transformer: Any, tokenizer: Any) -> PublishedTeacher:
    """A published teacher with other shapes."""
    entry = TEACHERS[name]
    return replace(
        entry,
        transformer=replace(entry.transformer, config=transformer),
        tokenizer=replace(entry.tokenizer, config=tokenizer),
    )


def resized_student(name: str, teacher: str, timesteps: tuple[int, ...], split: int) -> PublishedStudent:
    """A published student with another published teacher."""
    entry = STUDENTS[name]
    network = replace(entry.network, config=TEACHERS[teacher].transformer.config)
    return replace(entry, teacher=teacher, network=network, timesteps=timesteps, split=split)


def random_state(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random values for every tensor of a network."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class Weights:
    """Random weights of one small entry by role; `buffers` are the other tensors in official files."""

    transformer: dict[str, Tensor]
    student: dict[str, Tensor]
    tokenizer: dict[str, Tensor]
    buffers: dict[str, dict[str, Tensor]]

    def official(self, role: str) -> dict[str, Tensor]:
        """A role's tensors as in its official file."""
        return {**getattr(self, role), **self.buffers[role]}


def weights_of(name: str) -> Weights:
    """Weights for a published teacher and for a student of its shape."""
    published = TEACHERS[name]
    transformer, tokenizer = published.transformer.config, published.tokenizer.config
    family = family_of(published.family)
    with torch.device("meta"):
        networks = (
            family.transformer(transformer),
            student_factory(published.family)(transformer, tokenizer.codebook_dim),
            family.tokenizer(tokenizer),
        )
    states = (random_state(network, seed) for seed, network in enumerate(networks))
    return Weights(*states, buffers=_buffers(published))


def _buffers(published: PublishedTeacher) -> dict[str, dict[str, Tensor]]:
    if published.family == "llamagen":
        used = {"quantize.codebook_used": torch.zeros(65536)}
        return {"transformer": {}, "student": {}, "tokenizer": used}
    config = published.transformer.config
    length = config.layout.num_tokens
    hits = torch.zeros(len(config.scales), config.vocab_size)

    def constants(length: int) -> dict[str, Tensor]:
        return {
            "lvl_1L": torch.zeros(1, length, dtype=torch.int64),
            "attn_bias_for_masking": torch.full((1, 1, length, length), -torch.inf).triu(1),
            **{f"blocks.{i}.attn.zero_k_bias": torch.zeros(config.width) for i in range(config.depth)},
        }

    return {
        "transformer": constants(length),
        "student": constants(length + 1),
        "tokenizer": {"quantize.ema_vocab_hit_SV": hits},
    }


def contained(content: Any, place: tuple[str, ...]) -> Any:
    """A state dict inside a container."""
    for key in reversed(place):
        content = {key: content}
    return content


def training_checkpoint(family: str, state: Mapping[str, Tensor], tokenizer: Mapping[str, Tensor]) -> Any:
    """The content of a checkpoint of a family's official training program, as in containers.json."""
    if family == "var":
        optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
        trainer = {
            "config": {"prog_it": 0},
            "var_wo_ddp": state,
            "vae_local": tokenizer,
            "var_opt": optimizer,
        }
        return {"epoch": 3, "iter": 7, "trainer": trainer, "args": {"depth": 2}}
    return {"model": state, "optimizer": {"state": {}}, "steps": 7, "args": Namespace(gpt_model="GPT-B")}


def written(path: Path, content: Any, legacy: bool = False) -> str:
    """Write a file, in the format of its ending, and return its name; `legacy` is torch's format before 1.6."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return str(path)


@dataclass(frozen=True)
class Published:
    """The small entries of one family, which are in the tables while a test runs, and the files of one teacher."""

    family: str
    teacher: str
    student: str
    weights: Weights
    folder: Path

    def container(self, role: str) -> tuple[str, ...]:
        """The usual container of a role's tensors in its official file."""
        if role == "student":
            return STUDENTS[self.student].network.containers[0]
        return getattr(TEACHERS[self.teacher], role).containers[0]

    def write(self, role: str, state: Mapping[str, Tensor] | None = None, name: str = "") -> str:
        """Write a role's official file, or one with other tensors."""
        state = self.weights.official(role) if state is None else state
        path = self.folder / (name or f"{role}.pth")
        return written(path, contained(dict(state), self.container(role)))

    def write_both(self, student: bool = False) -> list[str]:
        """Write the two files of a teacher or a student."""
        return [self.write("student" if student else "transformer"), self.write("tokenizer")]
