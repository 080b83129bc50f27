"""Teachers on disk: one safetensors file, weights and configuration together, loaded strictly.

Names resolve to a file: an embedded teacher that ships with the package, one imported into
`${TOKENLEAP_HOME:-~/.cache/tokenleap}/teachers`, or a path ending in .safetensors. `tiny-random/NAME` is no file, but the
published teacher NAME made small, with random weights.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from shards.core.errors import Refused
from shards.storage.files import commit_file, sha256_bytes, sha256_file

EMBEDDED = Path(__file__).parent / "weights"
HEADER = "onestep_teacher"
"""Key of the file's header; it carries the project's first name, because files with it exist."""


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in eval mode, and where it came from."""

    name: str
    family: str
    sha256: str
    teacher: Teacher
    about: Mapping[str, Any]


def embedded_names() -> tuple[str, ...]:
    """Names of the teachers that ship with the package."""
    return tuple(sorted(path.stem for path in EMBEDDED.glob("*.safetensors")))


def imported_folder() -> Path:
    """Where imported teachers lie."""
    return Path(os.environ.get("TOKENLEAP_HOME", "~/.cache/tokenleap")).expanduser() / "teachers"


def imported_names() -> tuple[str, ...]:
    """Names of the teachers that were imported."""
    return tuple(sorted(path.stem for path in imported_folder().glob("*.safetensors")))


def refuse_unknown(name: str) -> None:
    """Confirm that a name leads to a teacher, without loading it.

    Raises:
        Refused: nothing has that name; the message lists what there is.
    """
    if not name.startswith(TINY):
        resolve(name)


def resolve(name: str) -> Path:
    """The file of a teacher's name.

    Raises:
        Refused: nothing has that name; the message lists what there is.
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
        published = TEACHERS[name]
        raise Refused(
            f"teacher.name: {name} is not here yet. Get {published.transformer.file} and "
            f"{published.tokenizer.file}, then `tokenleap teachers import {published.transformer.file.name} "
            f"{published.tokenizer.file.name} --as {name}`"
        )
    known = [*embedded_names(), *imported_names()]
    nearest = difflib.get_close_matches(name, [*known, *TEACHERS], 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else "."
    raise Refused(
        f"teacher.name: no teacher is called {name!r}{hint} "
        f"Embedded or imported: {', '.join(known) or 'none'}. A .safetensors file can be given, too"
    )


def save_teacher(
    teacher: Teacher, family: str, path: Path, about: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Write a teacher as one file.

    Args:
        teacher: what to write.
        family: its family's name.
        path: of the file.
        about: how it was made.
        dtype: of the stored tensors; None for their own.
    """
    header = {
        "family": family,
        "transformer": asdict(teacher.transformer.config),
        "tokenizer": asdict(teacher.tokenizer.config),
        "about": dict(about),
    }
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in teacher.state_dict().items()}
    metadata = {HEADER: json.dumps(header, sort_keys=True)}
    commit_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_teacher(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedTeacher:
    """Load a teacher by name or file, strictly, in eval mode; `dtype` is the transformer's.

    Raises:
        Refused: no such teacher, not a teacher's file, or tensors that do not fit its configuration.
    """
    if name.startswith(TINY):
        family, teacher = tiny_teacher(name.removeprefix(TINY))
        stem, sha256, about = name, _sha256_of(teacher), {"made": "at random"}
    else:
        path = resolve(name)
        header, tensors = _read(path)
        # On the meta device nothing is allocated, so the weights are in memory once.
        try:
            with on_meta_device():
                teacher = build_teacher(header["family"], header["transformer"], header["tokenizer"])
        except (TypeError, ValueError) as error:
            raise Refused(
                f"{path} describes no teacher of the family {header['family']!r} as it is installed here: {error}"
            ) from error
        load_strictly(teacher, tensors, path)
        stem, sha256, family, about = path.stem, sha256_file(path), header["family"], header["about"]
    teacher = teacher.to(device).eval().requires_grad_(False)
    # The codebook and the decoder stay as they are: flow map and student see the same rows whatever the dtype.
    teacher.transformer.to(dtype)
    return LoadedTeacher(stem, family, sha256, teacher, about)


def is_known_by_table_only(name: str) -> bool:
    """Whether a name is a published teacher's that was not imported yet."""
    return name in TEACHERS and name not in (*embedded_names(), *imported_names())


def shape_of_teacher(name: str) -> tuple[str, Teacher]:
    """A teacher's family and its networks on the meta device, shapes alone; published ones need not be here.

    Raises:
        Refused: nothing has that name, or not a teacher's file.
    """
    if is_known_by_table_only(name):
        published = TEACHERS[name]
        family = published.family
        configs = asdict(published.transformer.config), asdict(published.tokenizer.config)
    elif name.startswith(TINY):
        return tiny_teacher(name.removeprefix(TINY))
    else:
        with _opened(resolve(name)) as (header, _):
            family, configs = header["family"], (header["transformer"], header["tokenizer"])
    with on_meta_device():
        return family, build_teacher(family, *configs)


def load_strictly(
    module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str, ignored: Sequence[str] = ()
) -> None:
    """Make tensors a module's own, every name and shape as the module declares them, nothing left over.

    Floating-point tensors take the module's dtype; those that have it are not copied.

    Args:
        module: may lie on the meta device.
        tensors: by name.
        source: for the message.
        ignored: endings of names that may be there besides.

    Raises:
        Refused: names the first tensors that are missing, unknown, misshapen, of another kind or not finite.
    """
    expected = module.state_dict()
    wrong = misfits(expected, tensors, ignored)
    kept = {} if wrong else {name: tensors[name].to(like.dtype) for name, like in expected.items()}
    wrong = wrong or [
        f"{name} holds values that are not finite"
        for name, tensor in kept.items()
        if not torch.isfinite(tensor).all()
    ]
    if wrong:
        raise Refused(f"{source} does not fit {type(module).__name__}: {shortened(wrong)}")
    # A file may hold one tensor under two names: here each has numbers of its own.
    taken: set[int] = set()
    for name, tensor in kept.items():
        kept[name] = tensor.clone() if tensor.data_ptr() in taken else tensor
        taken.add(tensor.data_ptr())
    module.load_state_dict(kept, strict=True, assign=True)


def misfits(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], ignored: Sequence[str] = ()
) -> list[str]:
    """What keeps tensors from being a module's state, in words and in order; empty where they fit."""
    wrong = [f"missing {name}" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            if not name.endswith(tuple(ignored)):
                wrong.append(f"unknown {name}")
        elif tensor.shape != expected[name].shape:
            wrong.append(f"{name} is {list(tensor.shape)}, should be {list(expected[name].shape)}")
        elif tensor.is_floating_point() != expected[name].is_floating_point():
            wrong.append(f"{name} is {tensor.dtype}, should be {expected[name].dtype}")
        elif tensor.is_meta or tensor.layout != torch.strided:
            wrong.append(f"{name} is {tensor.layout} on {tensor.device}, should be all its numbers in memory")
    return sorted(wrong)


def shortened(wrong: Sequence[str], most: int = 5) -> str:
    """The first few of a list of complaints, and how many more there are."""
    more = f" and {len(wrong) - most} more" if len(wrong) > most else ""
    return "; ".join(wrong[:most]) + more


def read_about(path: Path) -> dict[str, Any]:
    """How a teacher's file was made, its tensors left alone.

    Raises:
        Refused: not a teacher's file.
    """
    with _opened(path) as (header, _):
        return dict(header["about"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with _opened(path) as (header, file):
        return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise Refused(
                    f"{path} is a safetensors file, but not a teacher written by this project: bring it in with "
                    "`tokenleap teachers import`"
                )
            yield json.loads(metadata[HEADER]), file
    except SafetensorError as error:
        raise Refused(f"{path} is not a complete safetensors file: {error}") from error


def _sha256_of(teacher: Teacher) -> str:
    """Of a teacher that is in no file: its names and numbers."""
    tensors = teacher.state_dict()
    return sha256_bytes(b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors)))
