"""Checkpoint files from outside, read strictly."""

from __future__ import annotations

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from generate_pairs.teachers.checkpoints import (
    load_strictly,
    misfits,
    shortened,
)
from generate_pairs.teachers.importing.hub import HUB, hub_file
from generate_pairs.teachers.published import Container, HubFile, Part
from shards.core.errors import Refused

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
