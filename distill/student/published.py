"""Published students: their table, their import, and export in the official layout.

Source: microsoft/distilled_decoding on the Hugging Face Hub; timesteps and splits are those of its sampling scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.student.export import CONFIG_FILE, EXPORT_FILES
from distill.student.networks import student_factory
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
"""Key paths of a student's weights in an official file, averaged weights first."""


@dataclass(frozen=True)
class PublishedStudent:
    """Files and sampling settings of a published student."""

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
"""Published students by the name for `tokenleap students import --as`."""


def import_student(files: Sequence[str], name: str, out: Path) -> None:
    """Convert the files of a published student and its tokenizer to an export, with a check of all tensors.

    `files` may have any order; if empty, both are downloaded from the Hub. Files of an interrupted import are replaced.

    Raises:
        Refused: The name is unknown, a file does not fit, or the folder contains something else.
        Failed: A download failed, or the disk is full.
    """
    if name not in STUDENTS:
        raise Refused(f"no published student is called {name!r}: there are {', '.join(STUDENTS)}")
    if (out / CONFIG_FILE).exists():
        raise Refused(f"{out} already contains a student: remove it, or choose a new folder")
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if other := [each for each in names if each not in EXPORT_FILES and not each.startswith(".")]:
        raise Refused(f"{out} already contains {other[0]}: choose a new folder")
    published = STUDENTS[name]
    teacher = TEACHERS[published.teacher]
    given = two_files(files, name, (published.network.file, teacher.tokenizer.file))
    # The meta device allocates nothing, so memory holds the weights only once.
    with on_meta_device():
        tokenizer = family_of(teacher.family).tokenizer(teacher.tokenizer.config)
        network = student_factory(teacher.family)(published.network.config, teacher.tokenizer.config.codebook_dim)
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


def published_networks() -> dict[str, tuple[Part, nn.Module]]:
    """All published teacher and student networks by name, on the meta device."""
    networks = teacher_networks()
    with on_meta_device():
        for name, published in STUDENTS.items():
            teacher = TEACHERS[published.teacher]
            network = student_factory(teacher.family)(published.network.config, teacher.tokenizer.config.codebook_dim)
            networks[f"student {name}"] = published.network, network
    return networks


def official_suffix(family: str) -> str:
    """File name suffix of a family's official students; raises Refused if it has no official layout."""
    if family not in CONTAINERS:
        raise Refused(
            f"students of the family {family!r} have no official layout: only {' and '.join(CONTAINERS)} have one"
        )
    return ".pth" if family == "var" else ".pt"


def export_official(student: Student, path: Path) -> None:
    """Write a student's network as a pickle of tensors that the official sampling code reads.

    Raises:
        Refused: The family has no official layout, or the file cannot be written.
    """
    official_suffix(student.family)
    content: Any = official_state(student)
    for key in reversed(CONTAINERS[student.family][0]):
        content = {key: content}

    def write(temporary: Path) -> None:
        # Given a path, torch stores the file name in the file; equal students must give equal bytes.
        with open(temporary, "wb") as file:
            torch.save(content, file)

    commit_file(path, write)


def official_state(student: Student) -> dict[str, Tensor]:
    """The official state dict on the CPU: the network's tensors, and for VAR also its constant buffers."""
    state = {name: tensor.cpu() for name, tensor in student.network.state_dict().items()}
    if isinstance(student.network, VarStudent):
        network = student.network
        blocked_LL = torch.zeros(network.mask_LL.shape).masked_fill(~network.mask_LL.cpu(), -torch.inf)
        state["lvl_1L"] = network.level_L.cpu()[None]
        state["attn_bias_for_masking"] = blocked_LL[None, None]
        for block in range(network.config.depth):
            state[f"blocks.{block}.attn.zero_k_bias"] = torch.zeros(network.config.width)
    return state
