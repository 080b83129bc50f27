"""Teachers on disk: one safetensors file with weights and configuration, loaded strictly.

A name resolves to a file: an embedded teacher that is part of the package, a teacher imported into
`${TOKENLEAP_HOME:-~/.cache/tokenleap}/teachers`, or a path that ends in .safetensors. The name `tiny-random/NAME` has no
file: it is the published teacher NAME made small, with random weights.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from generate_pairs.config import TINY
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.published import TEACHERS
from generate_pairs.teachers.registry import build_teacher
from generate_pairs.teachers.tiny_random import tiny_teacher
from shards.core.errors import Refused, join_first
from shards.core.host import home_folder
from shards.storage.files import commit_file, sha256_bytes, sha256_file

EMBEDDED = Path(__file__).parent / "weights"
HEADER = "onestep_teacher"
"""Key of the file's metadata. It is the project's first name, because files with this key exist."""


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in eval mode and its source; `about` is the `about` of `save_teacher`."""

    name: str
    family: str
    sha256: str
    teacher: Teacher
    about: Mapping[str, Any]

    def converted(self, device: torch.device | str, dtype: torch.dtype) -> LoadedTeacher:
        """The teacher on `device` with its transformer in `dtype`: a copy, unless it is there in that dtype already."""
        parameter = next(self.teacher.transformer.parameters())
        if (parameter.device, parameter.dtype) == (torch.device(device), dtype):
            return self
        teacher = copy.deepcopy(self.teacher).to(device)
        teacher.transformer.to(dtype)
        return replace(self, teacher=teacher)


def embedded_names() -> tuple[str, ...]:
    """Names of the teachers that are part of the package."""
    return _names_in(EMBEDDED)


def imported_folder() -> Path:
    """The folder of imported teachers."""
    return home_folder() / "teachers"


def imported_names() -> tuple[str, ...]:
    """Names of the imported teachers."""
    return _names_in(imported_folder())


def _names_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.safetensors")))


def refuse_unknown(name: str) -> None:
    """Check that a teacher of this name exists, without loading it; Refused as by `resolve`."""
    if not name.startswith(TINY):
        resolve(name)


def resolve(name: str) -> Path:
    """The file of a teacher.

    Raises:
        Refused: no file has that name; the message lists the names that exist.
    """
    if name.endswith(".safetensors"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise Refused(f"teacher.name: there is no file {path}")
        return path
    for folder in (EMBEDDED, imported_folder()):
        path = folder / f"{name}.safetensors"
        if path.is_file():
            return path
    if name in TEACHERS:
        files = TEACHERS[name].transformer.file, TEACHERS[name].tokenizer.file
        raise Refused(
            f"teacher.name: {name} is not imported yet. Get {files[0]} and {files[1]}, then "
            f"`tokenleap teachers import {files[0].name} {files[1].name} --as {name}`"
        )
    known = [*embedded_names(), *imported_names()]
    nearest = difflib.get_close_matches(name, [*known, *TEACHERS], 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else "."
    raise Refused(
        f"teacher.name: no teacher is called {name!r}{hint} "
        f"Embedded or imported: {', '.join(known) or 'none'}. A .safetensors file is possible, too"
    )


def save_teacher(teacher: Teacher, family: str, path: Path, about: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    """Write a teacher to one file, with a record of how it was made; tensors keep their dtype if `dtype` is None."""
    header = {
        "family": family,
        "transformer": asdict(teacher.transformer.config),
        "tokenizer": asdict(teacher.tokenizer.config),
        "about": dict(about),
    }
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in teacher.state_dict().items()}
    metadata = {HEADER: json.dumps(header, sort_keys=True)}
    commit_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_teacher(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedTeacher:
    """Load a teacher by name or file, strictly, in eval mode; `dtype` is that of the transformer.

    Raises:
        Refused: the teacher does not exist, the file is not a teacher, or its tensors do not fit its configuration.
    """
    if name.startswith(TINY):
        family, teacher = tiny_teacher(name.removeprefix(TINY))
        content = (key.encode() + value.numpy().tobytes() for key, value in sorted(teacher.state_dict().items()))
        stem, sha256, about = name, sha256_bytes(b"".join(content)), {"made": "at random"}
    else:
        path = resolve(name)
        with _opened(path) as (header, file):
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
        try:
            # The meta device allocates nothing, so memory contains the weights only once.
            with on_meta_device():
                teacher = build_teacher(header["family"], header["transformer"], header["tokenizer"])
        except (TypeError, ValueError) as error:
            raise Refused(
                f"{path} does not describe a teacher of the family {header['family']!r} as installed here: {error}"
            ) from error
        load_strictly(teacher, tensors, path)
        stem, sha256, family, about = path.stem, sha256_file(path), header["family"], header["about"]
    teacher = teacher.to(device).eval().requires_grad_(False)
    # Codebook and decoder keep their dtype, so flow map and student use the same rows for every `dtype`.
    teacher.transformer.to(dtype)
    return LoadedTeacher(stem, family, sha256, teacher, about)


def needs_import(name: str) -> bool:
    """Whether the name is that of a published teacher that is not imported."""
    return name in TEACHERS and name not in (*embedded_names(), *imported_names())


def shape_of_teacher(name: str) -> tuple[str, Teacher]:
    """A teacher's family and its networks, on the meta device unless the name is tiny-random/....

    Published ones need no import.

    Raises:
        Refused: the teacher does not exist, or the file is not a teacher.
    """
    if name.startswith(TINY):
        return tiny_teacher(name.removeprefix(TINY))
    if needs_import(name):
        published = TEACHERS[name]
        family = published.family
        configs = asdict(published.transformer.config), asdict(published.tokenizer.config)
    else:
        with _opened(resolve(name)) as (header, _):
            family, configs = header["family"], (header["transformer"], header["tokenizer"])
    with on_meta_device():
        return family, build_teacher(family, *configs)


def load_strictly(
    module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str, ignored: Sequence[str] = ()
) -> None:
    """Assign tensors to a module; names and shapes must be exactly those that the module declares.

    Floating-point tensors are converted to the module's dtype; tensors that have it are not copied. The module may be on
    the meta device. Other tensors are allowed if their names have one of the endings `ignored`.

    Raises:
        Refused: tensors are missing, unknown, of another shape or kind, or not finite; the message lists the first.
    """
    expected = module.state_dict()
    problems = state_problems(expected, tensors, ignored)
    state = {} if problems else {name: tensors[name].to(like.dtype) for name, like in expected.items()}
    problems = problems or [
        f"{name} contains values that are not finite"
        for name, tensor in state.items()
        if not torch.isfinite(tensor).all()
    ]
    if problems:
        raise Refused(f"{source} does not fit {type(module).__name__}: {join_first(problems)}")
    # A file may contain one tensor under two names: copy it, so that parameters do not share memory.
    addresses: set[int] = set()
    for name, tensor in state.items():
        state[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    module.load_state_dict(state, strict=True, assign=True)


def state_problems(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], ignored: Sequence[str] = ()
) -> list[str]:
    """The differences between tensors and a module's state dict, as sorted messages; empty if they fit."""
    problems = [f"missing {name}" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            if not name.endswith(tuple(ignored)):
                problems.append(f"unknown {name}")
        elif tensor.shape != expected[name].shape:
            problems.append(f"{name} is {list(tensor.shape)}, should be {list(expected[name].shape)}")
        elif tensor.is_floating_point() != expected[name].is_floating_point():
            problems.append(f"{name} is {tensor.dtype}, should be {expected[name].dtype}")
        elif tensor.is_meta or tensor.layout != torch.strided:
            problems.append(f"{name} is {tensor.layout} on {tensor.device}, should be dense and in memory")
    return sorted(problems)


def read_about(path: Path) -> dict[str, Any]:
    """The `about` of a teacher's file, without reading its tensors.

    Raises:
        Refused: the file is not a teacher.
    """
    with _opened(path) as (header, _):
        return dict(header["about"])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """The header of a teacher's file and the open file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise Refused(
                    f"{path} is a safetensors file, but not a teacher written by this project: import it with "
                    "`tokenleap teachers import`"
                )
            yield json.loads(metadata[HEADER]), file
    except SafetensorError as error:
        raise Refused(f"{path} is not a complete safetensors file: {error}") from error
