"""Published students: the table of their files, bringing one in, and writing one in the official layout.

Source: microsoft/distilled_decoding on the Hugging Face Hub, and the timesteps and splits of its sampling scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.student.export import CONFIG_FILE
from distill.student.networks import build_network
from distill.student.student import Student
from distill.student.var import VarStudent
from generate_pairs.teachers.importing.checkpoint_file import load_parts, two_files
from generate_pairs.teachers.importing.inspect import teacher_networks
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.published import TEACHERS, HubFile, Part
from generate_pairs.teachers.registry import family_of
from generate_pairs.teachers.var.transformer import IGNORED_BUFFERS as VAR_BUFFERS
from shards.core.errors import Refused
from shards.storage.files import commit_file

REPOSITORY = "microsoft/distilled_decoding"

CONTAINERS = {
    "var": (("trainer", "ema_parameters"), ("trainer", "var_wo_ddp")),
    "llamagen": (("ema",), ("model",), ("module",), ("state_dict",), ()),
}
"""Where the official code looks for a student's weights in a file, the averaged ones first."""


@dataclass(frozen=True)
class PublishedStudent:
    """A student as its authors publish it, and how they sample it."""

    teacher: str
    network: Part
    timesteps: tuple[int, ...]
    split: int
    licence: str = "MIT"


def _student(teacher: str, file: str, timesteps: tuple[int, ...], split: int) -> PublishedStudent:
    published = TEACHERS[teacher]
    ignored = VAR_BUFFERS if published.family == "var" else ()
    config = published.transformer.config
    part = Part(HubFile(REPOSITORY, file), CONTAINERS[published.family], ignored, config)
    return PublishedStudent(teacher, part, timesteps, split)


STUDENTS: Mapping[str, PublishedStudent] = {
    "var-dd-d16": _student("var-d16", "VAR-DD/var-d16.pth", (0, 5), 5),
    "var-dd-d20": _student("var-d20", "VAR-DD/var-d20.pth", (0, 4), 4),
    "var-dd-d24": _student("var-d24", "VAR-DD/var-d24.pth", (0, 4), 4),
    "llamagen-dd-b": _student("llamagen-b-256", "LlamaGen-DD/llamagen-B.pt", (0, 80), 80),
    "llamagen-dd-l": _student("llamagen-l-256", "LlamaGen-DD/llamagen-L.pt", (0, 80), 130),
}
"""By the names that `tokenleap students import --as` takes."""


def import_student(files: Sequence[str], name: str, out: Path) -> None:
    """Make a published student's file and its tokenizer's into a student's folder, checked against the tables.

    Args:
        files: the student's and the tokenizer's, in any order; none to take both from the Hub.
        name: the student's, as in `STUDENTS`.
        out: folder of the export; an import that was killed there is begun again.

    Raises:
        Refused: an unknown name, files that do not fit, a folder that holds something else.
        Failed: a download failed, or the disk is full.
    """
    if name not in STUDENTS:
        raise Refused(f"no published student is called {name!r}: there are {', '.join(STUDENTS)}")
    refuse_taken(out)
    published = STUDENTS[name]
    teacher = TEACHERS[published.teacher]
    given = two_files(files, name, (published.network.file, teacher.tokenizer.file))
    # On the meta device nothing is allocated, so the weights are in memory once.
    with on_meta_device():
        tokenizer = family_of(teacher.family).tokenizer(teacher.tokenizer.config)
        network = build_network(
            teacher.family, published.network.config, teacher.tokenizer.config.codebook_dim
        )
    load_parts(given, [(published.network, network), (teacher.tokenizer, tokenizer)])
    student = Student(
        teacher.family,
        network,
        tokenizer.decoder_only(),
        published.network.config.layout,
        published.timesteps,
        published.split,
        fingerprint=None,
        num_pairs=None,
    )
    student.export(out)


def refuse_taken(out: Path) -> None:
    """Confirm that a folder is free for a student, or holds what is left of an export that was killed.

    Raises:
        Refused: it holds a whole student, or anything else.
    """
    if (out / CONFIG_FILE).exists():
        raise Refused(f"{out} holds a student already: take it away first, or name a new folder")
    unfinished = ("student.safetensors", "tokenizer.safetensors")
    held = (
        sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.exists() else []
    )
    if foreign := [name for name in held if name not in unfinished]:
        raise Refused(f"{out} holds something already ({foreign[0]}): name a new folder")


def networks() -> dict[str, tuple[Part, nn.Module]]:
    """Every network of both tables by what it is called, on the meta device."""
    found = teacher_networks()
    with on_meta_device():
        for name, published in STUDENTS.items():
            teacher = TEACHERS[published.teacher]
            codebook_dim = teacher.tokenizer.config.codebook_dim
            found[f"student {name}"] = (
                published.network,
                build_network(teacher.family, published.network.config, codebook_dim),
            )
    return found


def official_suffix(family: str) -> str:
    """The ending of the official files of a family's students.

    Raises:
        Refused: the family has no official layout.
    """
    if family not in CONTAINERS:
        raise Refused(
            f"students of the family {family!r} have no official layout: {', '.join(CONTAINERS)} have"
        )
    return ".pth" if family == "var" else ".pt"


def export_official(student: Student, path: Path) -> None:
    """Write a student's network as the official sampling code reads it: a pickle of tensors in its container.

    Raises:
        Refused: the family has no official layout, or the place cannot be written to.
    """
    official_suffix(student.family)
    content: Any = official_state(student)
    for key in reversed(CONTAINERS[student.family][0]):
        content = {key: content}

    def write(temporary: Path) -> None:
        # Given a path, torch puts its name into the file; the same student shall be the same bytes.
        with open(temporary, "wb") as file:
            torch.save(content, file)

    commit_file(path, write)


def official_state(student: Student) -> dict[str, Tensor]:
    """The official state dict on the CPU: our tensors, and for VAR the constants that its class keeps as buffers."""
    state = {name: tensor.cpu() for name, tensor in student.network.state_dict().items()}
    if isinstance(student.network, VarStudent):
        network = student.network
        blocked_LL = torch.zeros(network.mask_LL.shape).masked_fill(~network.mask_LL.cpu(), -torch.inf)
        state["lvl_1L"] = network.level_L.cpu()[None]
        state["attn_bias_for_masking"] = blocked_LL[None, None]
        for block in range(network.config.depth):
            state[f"blocks.{block}.attn.zero_k_bias"] = torch.zeros(network.config.width)
    return state
