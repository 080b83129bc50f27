"""Which published network a file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from generate_pairs.teachers.checkpoints import (
    shortened,
)
from generate_pairs.teachers.importing.checkpoint_file import read_checkpoint
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.published import TEACHERS, VQ8, Container, HubFile, Part
from generate_pairs.teachers.registry import family_of
from shards.core.errors import Refused


@dataclass(frozen=True)
class Fit:
    """How a file's tensors stand to one network of the tables: `wrong` is empty where they fit."""

    network: str
    place: Container
    wrong: tuple[str, ...]


def num_parameters(network: nn.Module) -> int:
    """How many numbers a network has learned."""
    return sum(parameter.numel() for parameter in network.parameters())


def published_transformer(name: str) -> nn.Module:
    """The transformer of a published teacher on the meta device: shapes alone."""
    published = TEACHERS[name]
    with on_meta_device():
        transformer: nn.Module = family_of(published.family).transformer(published.transformer.config)
    return transformer


def teacher_networks() -> dict[str, tuple[Part, nn.Module]]:
    """Every network of the table of teachers by what it is called, on the meta device; tokenizers once each."""
    found: dict[str, tuple[Part, nn.Module]] = {}
    seen: dict[HubFile, str] = {}
    with on_meta_device():
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


def describe(fits: Sequence[Fit]) -> list[str]:
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
