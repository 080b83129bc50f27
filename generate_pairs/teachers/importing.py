"""Checkpoints from outside: found in a file of any container, held against a table, kept in this project's form.

Nothing in a file is trusted: pickles load with `weights_only=True`, and every name, shape and kind of number must be
the table's.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from generate_pairs.teachers.checkpoints import (
    imported_folder,
    load_strictly,
    load_teacher,
    misfits,
    save_teacher,
    shortened,
)
from generate_pairs.teachers.families import build_teacher, family_of
from generate_pairs.teachers.official import TEACHERS, VQ8, Container, HubFile, Part
from shards.errors import Failed, Refused
from shards.storage import sha256_file

HUB = "hf://"


@dataclass(frozen=True)
class Fit:
    """How a file's tensors stand to one network of the tables: `wrong` is empty where they fit."""

    network: str
    wrong: tuple[str, ...]


def local_file(name: str) -> Path:
    """A file's path; `hf://OWNER/REPOSITORY/FILE` is downloaded from the Hugging Face Hub, or found in its cache.

    Raises:
        Refused: there is no such file, or the extra `hub` is not installed.
        Failed: the download failed.
    """
    if not name.startswith(HUB):
        path = Path(name).expanduser()
        if not path.is_file():
            raise Refused(f"there is no file {path}")
        return path
    repository, _, file = name.removeprefix(HUB).rpartition("/")
    if repository.count("/") != 1 or not file:
        raise Refused(f"{name}: a file on the Hub is named {HUB}OWNER/REPOSITORY/FILE")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise Refused(
            f"{name} needs the Hugging Face client: pip install 'onestep[hub]', or download the file yourself"
        ) from error
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # its errors have no common base class
        raise Failed(f"cannot get {name}: {error}") from error


def read_content(path: Path) -> Any:
    """What a checkpoint file holds, its tensors left on disk until they are read where the format allows it.

    Raises:
        Refused: no checkpoint, an incomplete one, or one that asks for more than weights.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The format before torch 1.6 is no zip file and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).split("Please file an issue")[0].strip().splitlines()
        raise Refused(
            f"{path} is not read, for it is no pickle of weights alone (weights_only=True says: "
            f"{' '.join(reason[:2])[:300]}). Convert it to safetensors where you trust it"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise Refused(f"{path} is not a complete checkpoint: {str(error).splitlines()[0]}") from error


def state_dict_in(content: Any, containers: Sequence[Container], path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds, at the first of these places where there is one.

    Raises:
        Refused: there is none; says what the file holds instead.
    """
    for container in containers:
        found = reduce(
            lambda inner, key: inner.get(key) if isinstance(inner, Mapping) else None, container, content
        )
        if (
            isinstance(found, Mapping)
            and found
            and all(isinstance(value, Tensor) for value in found.values())
        ):
            return dict(found)
    places = ", ".join(".".join(container) or "the top" for container in containers)
    held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
    raise Refused(f"{path} holds no tensors by name at {places}; it holds {held or 'nothing'}")


def import_teacher(files: Sequence[str], name: str) -> Path:
    """Keep a published teacher's two files as one of this project's, checked against the table.

    Args:
        files: the transformer's and the tokenizer's, in any order; none to take both from the Hub.
        name: the teacher's, as in `official.TEACHERS`.

    Returns:
        The file that `teacher.name = NAME` finds from now on; one that is there already from the same files stays.

    Raises:
        Refused: an unknown name, files that do not fit, or another import under this name.
        Failed: a download failed, or the disk is full.
    """
    if name not in TEACHERS:
        raise Refused(f"no published teacher is called {name!r}: there are {', '.join(TEACHERS)}")
    published = TEACHERS[name]
    given = [
        local_file(file) for file in files or map(str, (published.transformer.file, published.tokenizer.file))
    ]
    if len(given) != 2:
        raise Refused(
            f"{name} is made of two files, {published.transformer.file.name} and {published.tokenizer.file.name}: "
            f"{len(given)} given"
        )
    sha256 = {path.name: sha256_file(path) for path in given}
    out = imported_folder() / f"{name}.safetensors"
    if out.is_file():
        refuse_other_import(out, sha256)
        return out
    # On the meta device nothing is allocated, so the weights are in memory once.
    with torch.device("meta"):
        teacher = build_teacher(
            published.family, asdict(published.transformer.config), asdict(published.tokenizer.config)
        )
    parts = {"transformer": published.transformer, "tokenizer": published.tokenizer}
    contents = {path: read_content(path) for path in given}

    def number_of_misfits(order: Sequence[Path]) -> int:
        pairs = zip(order, parts.items(), strict=True)
        return sum(
            len(_misfits(contents[path], part, getattr(teacher, role))) for path, (role, part) in pairs
        )

    order = min((given, given[::-1]), key=number_of_misfits)
    for path, (role, part) in zip(order, parts.items(), strict=True):
        tensors = state_dict_in(contents[path], part.containers, path)
        load_strictly(getattr(teacher, role), tensors, path, part.ignored)
    about = {
        "files": sha256,
        "published": [str(part.file) for part in parts.values()],
        "licence": published.licence,
        "codebook_rows_repeated": repeated_rows(teacher.codebook_VC),
    }
    save_teacher(teacher, published.family, out, about, dtype=None)
    return out


def refuse_other_import(path: Path, sha256: Mapping[str, str]) -> None:
    """Confirm that an imported teacher was made from these files.

    Raises:
        Refused: it was made from others.
    """
    made_from = dict(load_teacher(str(path)).about).get("files", {})
    if sorted(made_from.values()) != sorted(sha256.values()):
        raise Refused(
            f"{path} is there already, made from other files ({', '.join(made_from)}): take it away first, or keep it"
        )


def num_parameters(network: nn.Module) -> int:
    """How many numbers a network has learned."""
    return sum(parameter.numel() for parameter in network.parameters())


def published_transformer(name: str) -> nn.Module:
    """The transformer of a published teacher on the meta device: shapes alone."""
    published = TEACHERS[name]
    with torch.device("meta"):
        transformer: nn.Module = family_of(published.family).transformer(published.transformer.config)
    return transformer


def repeated_rows(codebook_VC: Tensor) -> int:
    """How many codebook rows equal an earlier one: the flow map takes such rows for one point."""
    return len(codebook_VC) - len(torch.unique(codebook_VC, dim=0))


def teacher_networks() -> dict[str, tuple[Part, nn.Module]]:
    """Every network of the table of teachers by what it is called, on the meta device; tokenizers once each."""
    found: dict[str, tuple[Part, nn.Module]] = {}
    seen: dict[HubFile, str] = {}
    with torch.device("meta"):
        for name, published in TEACHERS.items():
            found[f"transformer of {name}"] = (published.transformer, published_transformer(name))
            file = published.tokenizer.file
            if file not in seen:
                seen[file] = f"tokenizer {file.name}"
                found[seen[file]] = (
                    published.tokenizer,
                    family_of(published.family).tokenizer(published.tokenizer.config),
                )
        found[f"tokenizer {VQ8.file.name}"] = (VQ8, family_of("llamagen").tokenizer(VQ8.config))
    return found


def inspect(path: Path, tables: Mapping[str, tuple[Part, nn.Module]]) -> list[Fit]:
    """How a file's tensors stand to every network of the tables: those that fit, or else the nearest one alone.

    Raises:
        Refused: the file cannot be read.
    """
    content = read_content(path)
    fits = [Fit(name, tuple(_misfits(content, *table))) for name, table in tables.items()]
    return [fit for fit in fits if not fit.wrong] or [min(fits, key=lambda fit: len(fit.wrong))]


def _misfits(content: Any, part: Part, network: nn.Module) -> list[str]:
    """What keeps a file's content from being a network's weights; where it holds none, every tensor is missing."""
    expected = network.state_dict()
    try:
        tensors = state_dict_in(content, part.containers, Path(part.file.name))
    except Refused as error:
        return [str(error)] * (1 + len(expected))
    return misfits(expected, tensors, part.ignored)


def in_words(fits: Sequence[Fit]) -> list[str]:
    """What `inspect` found, a line each."""
    if any(fit.wrong for fit in fits):
        (nearest,) = fits
        return [
            f"fits nothing that is published; nearest is the {nearest.network}: {shortened(nearest.wrong)}"
        ]
    lines = [f"fits the {fit.network}" for fit in fits]
    if len(fits) > 1:
        lines.append("these have the same names and shapes: only you can tell which it is")
    return lines
