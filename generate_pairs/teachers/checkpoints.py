"""Teachers on disk: one safetensors file, weights and configuration together, loaded strictly.

Names resolve to a file: an embedded teacher that ships with the package, one imported into
`${ONESTEP_HOME:-~/.cache/onestep}/teachers`, or a path ending in .safetensors.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from generate_pairs.teachers.base import Teacher, Tokenizer
from generate_pairs.teachers.llamagen import LlamaGenConfig, LlamaGenTeacher, LlamaGenTransformer
from generate_pairs.teachers.llamagen_tokenizer import LlamaGenTokenizer, LlamaGenTokenizerConfig
from generate_pairs.teachers.var import VarConfig, VarTeacher, VarTransformer
from generate_pairs.teachers.var_tokenizer import VarTokenizer, VarTokenizerConfig
from shards.errors import Refused

EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Family:
    """The classes that one family of teachers is built from."""

    teacher: type[Any]
    transformer: type[Any]
    transformer_config: type[Any]
    tokenizer: type[Any]
    tokenizer_config: type[Any]


FAMILIES: Mapping[str, Family] = {
    "llamagen": Family(
        LlamaGenTeacher, LlamaGenTransformer, LlamaGenConfig, LlamaGenTokenizer, LlamaGenTokenizerConfig
    ),
    "var": Family(VarTeacher, VarTransformer, VarConfig, VarTokenizer, VarTokenizerConfig),
}


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
    return Path(os.environ.get("ONESTEP_HOME", "~/.cache/onestep")).expanduser() / "teachers"


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
    known = [*embedded_names(), *sorted(p.stem for p in imported_folder().glob("*.safetensors"))]
    nearest = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else "."
    raise Refused(
        f"teacher.name: no teacher is called {name!r}{hint} "
        f"Embedded or imported: {', '.join(known) or 'none'}. A .safetensors file can be given, too"
    )


def build_tokenizer(family: str, config: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer with fresh weights from its configuration as JSON holds it (lists for tuples)."""
    parts = FAMILIES[family]
    return parts.tokenizer(parts.tokenizer_config(**_tuples(config)))


def build_teacher(family: str, transformer: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> Teacher:
    """A teacher with fresh weights."""
    parts = FAMILIES[family]
    core = parts.transformer(transformer_config(family, transformer))
    return parts.teacher(core, build_tokenizer(family, tokenizer))


def transformer_config(family: str, config: Mapping[str, Any]) -> Any:
    """A family's transformer configuration from what JSON holds of it."""
    return FAMILIES[family].transformer_config(**_tuples(config))


def save_teacher(
    teacher: Teacher, family: str, path: Path, about: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Write a teacher as one file; `about` says how it was made."""
    from shards.storage import commit_bytes

    header = {
        "family": family,
        "transformer": asdict(teacher.transformer.config),
        "tokenizer": asdict(teacher.tokenizer.config),
        "about": dict(about),
    }
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in teacher.state_dict().items()}
    commit_bytes(path, save(tensors, metadata={"onestep_teacher": json.dumps(header, sort_keys=True)}))


def load_teacher(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedTeacher:
    """Load a teacher by name or file, strictly, in eval mode; `dtype` is the transformer's.

    Raises:
        Refused: no such teacher, not a teacher's file, or tensors that do not fit its configuration.
    """
    path = resolve(name)
    header, tensors = _read(path)
    teacher = build_teacher(header["family"], header["transformer"], header["tokenizer"])
    load_strictly(teacher, tensors, path)
    teacher = teacher.to(device).eval().requires_grad_(False)
    # The codebook and the decoder stay as they are: flow map and student see the same rows whatever the dtype.
    teacher.transformer.to(dtype)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LoadedTeacher(path.stem, header["family"], digest, teacher, header["about"])


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy tensors into a module, every name and shape as the module declares them, nothing left over.

    Raises:
        Refused: names the first tensors that are missing, unknown, misshapen or not finite.
    """
    expected = module.state_dict()
    wrong = [f"missing {name}" for name in expected if name not in tensors]
    wrong += [f"unknown {name}" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        if expected[name].shape != tensors[name].shape:
            wrong.append(f"{name} is {list(tensors[name].shape)}, should be {list(expected[name].shape)}")
        elif not torch.isfinite(tensors[name]).all():
            wrong.append(f"{name} holds values that are not finite")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise Refused(f"{source} does not fit {type(module).__name__}: {'; '.join(sorted(wrong)[:5])}{more}")
    module.load_state_dict(dict(tensors), strict=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "onestep_teacher" not in metadata:
                raise Refused(f"{path} is a safetensors file, but not a teacher written by this project")
            return json.loads(metadata["onestep_teacher"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Refused(f"{path} is not a complete safetensors file: {error}") from error


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
