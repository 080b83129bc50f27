"""Checkpoint files of other projects, read strictly."""

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

from generate_pairs.teachers.checkpoints import load_strictly, state_problems
from generate_pairs.teachers.importing.hub import HUB, hub_file
from generate_pairs.teachers.published import Container, HubFile, Part
from shards.core.errors import Refused, join_first

SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A file of another project and its content: tensors by name, possibly inside nested mappings."""

    path: Path
    content: Any

    def place(self, part: Part) -> Container | None:
        """The first of a part's containers with tensors by name; in safetensors it can only be the top level."""
        places = ((),) if self.path.suffix == SAFETENSORS else part.containers
        return next((place for place in places if self._at(place)), None)

    def tensors(self, part: Part) -> dict[str, Tensor]:
        """The tensors in that container.

        Raises:
            Refused: the file has none; the message lists its keys.
        """
        place = self.place(part)
        if place is None:
            places = ", ".join(".".join(container) or "the top level" for container in part.containers)
            raise Refused(f"{self.path} contains no named tensors at {places}; it contains {self.summary()}")
        return self._at(place)

    def problems(self, part: Part, network: nn.Module) -> list[str]:
        """The differences between the file and a network; without named tensors, one more than the network's size."""
        expected = network.state_dict()
        if self.place(part) is None:
            return ["no named tensors", *(f"missing {name}" for name in expected)]
        return state_problems(expected, self.tensors(part), part.ignored)

    def summary(self) -> str:
        """The keys at the top level, or the type of the content."""
        if not isinstance(self.content, Mapping):
            return f"a {type(self.content).__name__}"
        return join_first([str(key) for key in self.content]) or "nothing"

    def _at(self, place: Container) -> dict[str, Tensor]:
        content = self.content
        for key in place:
            content = content.get(key) if isinstance(content, Mapping) else None
        if not isinstance(content, Mapping):
            return {}
        is_named = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
        return dict(content) if is_named else {}


def local_file(name: str) -> Path:
    """A file's path; `hf://OWNER/REPOSITORY/FILE` is downloaded from the Hugging Face Hub or read from its cache.

    Raises:
        Refused: the file does not exist, or the extra `hub` is not installed.
        Failed: the download failed.
    """
    if name.startswith(HUB):
        return hub_file(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise Refused(f"there is no file {path}")
    return path


def two_files(files: Sequence[str], name: str, published: tuple[HubFile, HubFile]) -> tuple[Path, Path]:
    """Local paths of the two files of a published model: the given ones, or both from the Hub.

    Raises:
        Refused, Failed: as `local_file`; or the number of given files is neither two nor zero.
    """
    if len(files) not in (0, 2):
        raise Refused(f"{name} consists of two files, {published[0].name} and {published[1].name}: {len(files)} given")
    first, second = files or map(str, published)
    return local_file(first), local_file(second)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file; if the format allows it, tensors are read from disk only when they are used.

    Raises:
        Refused: the file is not a checkpoint, is incomplete, or its pickle needs more than weights.
    """
    try:
        if path.suffix == SAFETENSORS:
            return Checkpoint(path, load_file(path))
        # Training programs store their command line with the weights, as this class without behaviour.
        with torch.serialization.safe_globals([Namespace]):
            # The format before torch 1.6 is not a zip file and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            return Checkpoint(path, torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    except pickle.UnpicklingError as error:
        # Torch's own message is not shown: it advises to load without `weights_only`.
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe is None:
            raise Refused(f"{path} is not a complete checkpoint: it is no pickle of weights") from error
        raise Refused(
            f"{path} is not read: its pickle needs {unsafe[1]}, which may run code, and weights need none. If you "
            "trust it, convert it to safetensors"
        ) from error
    except Exception as error:  # on damaged files, readers raise exceptions of any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(f"{path} is not a complete checkpoint: {reason}") from error


def load_parts(files: Sequence[Path], parts: Sequence[tuple[Part, nn.Module]]) -> tuple[Path, ...]:
    """Load networks from as many files, strictly, with the assignment of files that has the fewest problems.

    The networks are on the meta device.

    Returns:
        The file of each network.

    Raises:
        Refused: a file cannot be read, or does not fit.
    """

    def num_problems(order: Sequence[Checkpoint]) -> int:
        return sum(len(file.problems(*part)) for file, part in zip(order, parts, strict=True))

    checkpoints = [read_checkpoint(path) for path in files]
    order = min(permutations(checkpoints), key=num_problems)
    for checkpoint, (part, network) in zip(order, parts, strict=True):
        load_strictly(network, checkpoint.tensors(part), checkpoint.path, part.ignored)
    return tuple(checkpoint.path for checkpoint in order)
