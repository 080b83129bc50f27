"""Checkpoints from outside: found in a file of any container, held against a table, kept in this project's form.

Nothing in a file is trusted: pickles load with `weights_only=True`, and every name, shape and kind of number must be
the table's.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from generate_pairs.teachers.blank import blank
from generate_pairs.teachers.checkpoints import (
    imported_folder,
    load_strictly,
    misfits,
    read_about,
    save_teacher,
    shortened,
)
from generate_pairs.teachers.families import build_teacher, family_of
from generate_pairs.teachers.hub import HUB, hub_file
from generate_pairs.teachers.official import TEACHERS, VQ8, Container, HubFile, Part
from shards.core.errors import Refused
from shards.storage.files import sha256_file

SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A file from outside and what it holds: tensors by name, or mappings that lead to them."""

    path: Path
    content: Any

    def place(self, part: Part) -> Container | None:
        """The first of a part's places where there are tensors by name; in safetensors there is no other than the top."""
        places = ((),) if self.path.suffix == SAFETENSORS else part.containers
        return next((place for place in places if self._at(place)), None)

    def tensors(self, part: Part) -> dict[str, Tensor]:
        """The tensors at that place.

        Raises:
            Refused: there are none; says what the file holds instead.
        """
        place = self.place(part)
        if place is None:
            places = ", ".join(".".join(container) or "the top" for container in part.containers)
            raise Refused(f"{self.path} holds no tensors by name at {places}; it holds {self.summary()}")
        return self._at(place)

    def misfits(self, part: Part, network: nn.Module) -> list[str]:
        """What keeps the file from being a network's; where it holds no tensors, all of them and one more."""
        expected = network.state_dict()
        if self.place(part) is None:
            return ["no tensors by name", *(f"missing {name}" for name in expected)]
        return misfits(expected, self.tensors(part), part.ignored)

    def summary(self) -> str:
        """What is at the top, in words."""
        if not isinstance(self.content, Mapping):
            return f"a {type(self.content).__name__}"
        return shortened([str(key) for key in self.content]) or "nothing"

    def _at(self, place: Container) -> dict[str, Tensor]:
        found = self.content
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            return {}
        named = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())
        return dict(found) if named else {}


@dataclass(frozen=True)
class Fit:
    """How a file's tensors stand to one network of the tables: `wrong` is empty where they fit."""

    network: str
    place: Container
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
    return hub_file(name)


def two_files(given: Sequence[str], name: str, published: tuple[HubFile, HubFile]) -> tuple[Path, Path]:
    """The files that something published is made of, here: those given, or both from the Hub.

    Raises:
        Refused, Failed: as `local_file`; or neither two nor none are given.
    """
    if len(given) not in (0, 2):
        raise Refused(
            f"{name} is made of two files, {published[0].name} and {published[1].name}: {len(given)} given"
        )
    first, second = given or map(str, published)
    return local_file(first), local_file(second)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint file, its tensors left on disk until they are read where the format allows it.

    Raises:
        Refused: no checkpoint, an incomplete one, or one that asks for more than weights.
    """
    try:
        if path.suffix == SAFETENSORS:
            return Checkpoint(path, load_file(path))
        # Training programs keep their command line beside the weights: a class that holds attributes and does nothing.
        with torch.serialization.safe_globals([Namespace]):
            # The format before torch 1.6 is no zip file and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            return Checkpoint(path, torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    except pickle.UnpicklingError as error:
        # Torch's own advice, to load without `weights_only`, is not passed on.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise Refused(f"{path} is not a complete checkpoint: it is no pickle of weights") from error
        raise Refused(
            f"{path} is not read: it asks for {asked[1]}, which may run code, and weights need none. Convert it to "
            "safetensors where you trust it"
        ) from error
    except Exception as error:  # a damaged file makes its readers raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(f"{path} is not a complete checkpoint: {reason}") from error


def load_parts(files: Sequence[Path], parts: Sequence[tuple[Part, nn.Module]]) -> tuple[Path, ...]:
    """Load networks from as many files, strictly, in the order in which these fit best.

    Args:
        files: in any order.
        parts: the networks, on the meta device, and where their weights stand.

    Returns:
        The file of each network.

    Raises:
        Refused: a file cannot be read, or does not fit.
    """

    def num_misfits(order: Sequence[Checkpoint]) -> int:
        return sum(len(file.misfits(*part)) for file, part in zip(order, parts, strict=True))

    checkpoints = [read_checkpoint(path) for path in files]
    order = min(permutations(checkpoints), key=num_misfits)
    for checkpoint, (part, network) in zip(order, parts, strict=True):
        load_strictly(network, checkpoint.tensors(part), checkpoint.path, part.ignored)
    return tuple(checkpoint.path for checkpoint in order)


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
    parts = {"transformer": published.transformer, "tokenizer": published.tokenizer}
    given = two_files(files, name, (published.transformer.file, published.tokenizer.file))
    sha256 = {path: sha256_file(path) for path in given}
    out = imported_folder() / f"{name}{SAFETENSORS}"
    if out.is_file():
        refuse_other_import(out, [sha256[path] for path in given])
        return out
    # On the meta device nothing is allocated, so the weights are in memory once.
    with blank():
        teacher = build_teacher(
            published.family, asdict(published.transformer.config), asdict(published.tokenizer.config)
        )
    sources = load_parts(given, [(part, getattr(teacher, role)) for role, part in parts.items()])
    about = {
        # Not what the files were called: the bytes written here go into the pairs' fingerprint.
        "files": {role: sha256[path] for role, path in zip(parts, sources, strict=True)},
        "published": [str(part.file) for part in parts.values()],
        "licence": published.licence,
        "codebook_rows_repeated": repeated_rows(teacher.codebook_VC),
    }
    save_teacher(teacher, published.family, out, about, dtype=None)
    return out


def refuse_other_import(path: Path, sha256: Sequence[str]) -> None:
    """Confirm that an imported teacher was made from files of these hashes.

    Raises:
        Refused: it was made from others.
    """
    made_from = read_about(path).get("files", {})
    if sorted(made_from.values()) != sorted(sha256):
        those = (
            ", ".join(f"{role} {digest[:12]}" for role, digest in made_from.items())
            or "nothing that it names"
        )
        raise Refused(
            f"{path} is there already, made from files of another sha256 ({those}): take it away first, or keep it"
        )


def num_parameters(network: nn.Module) -> int:
    """How many numbers a network has learned."""
    return sum(parameter.numel() for parameter in network.parameters())


def published_transformer(name: str) -> nn.Module:
    """The transformer of a published teacher on the meta device: shapes alone."""
    published = TEACHERS[name]
    with blank():
        transformer: nn.Module = family_of(published.family).transformer(published.transformer.config)
    return transformer


def repeated_rows(codebook_VC: Tensor) -> int:
    """How many codebook rows equal an earlier one: the flow map takes such rows for one point."""
    return len(codebook_VC) - len(torch.unique(codebook_VC, dim=0))


def teacher_networks() -> dict[str, tuple[Part, nn.Module]]:
    """Every network of the table of teachers by what it is called, on the meta device; tokenizers once each."""
    found: dict[str, tuple[Part, nn.Module]] = {}
    seen: dict[HubFile, str] = {}
    with blank():
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
        Refused: the file cannot be read, or holds no tensors where any network has them.
    """
    checkpoint = read_checkpoint(path)
    fits = [
        Fit(name, place, tuple(checkpoint.misfits(part, network)))
        for name, (part, network) in tables.items()
        if (place := checkpoint.place(part)) is not None
    ]
    if not fits:
        raise Refused(
            f"{path} holds no tensors by name where published networks have theirs; it holds {checkpoint.summary()}"
        )
    return [fit for fit in fits if not fit.wrong] or [min(fits, key=lambda fit: len(fit.wrong))]


def in_words(fits: Sequence[Fit]) -> list[str]:
    """What `inspect` found, a line each."""
    if fits[0].wrong:
        nearest = fits[0]
        return [
            f"fits nothing that is published; nearest is the {nearest.network}: {shortened(nearest.wrong)}"
        ]
    lines = []
    for place in dict.fromkeys(fit.place for fit in fits):
        names = [fit.network for fit in fits if fit.place == place]
        where = f", at {'.'.join(place)}," if place else ""
        lines += [f"fits{where} the {name}" for name in names]
        if len(names) > 1:
            lines.append("these have the same names and shapes: only you can tell which it is")
    return lines
