"""Find the published network whose weights a file contains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from generate_pairs.teachers.importing.checkpoint_file import read_checkpoint
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.published import TEACHERS, VQ8, Container, Part
from generate_pairs.teachers.registry import family_of
from shards.core.errors import Refused, join_first


@dataclass(frozen=True)
class Fit:
    """Comparison of a file's tensors with one published network; `problems` is empty if they fit."""

    network: str
    place: Container
    problems: tuple[str, ...]


def num_parameters(network: nn.Module) -> int:
    """The number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def published_transformer(name: str) -> nn.Module:
    """The transformer of a published teacher on the meta device."""
    published = TEACHERS[name]
    with on_meta_device():
        transformer: nn.Module = family_of(published.family).transformer(published.transformer.config)
    return transformer


def teacher_networks() -> dict[str, tuple[Part, nn.Module]]:
    """Every network of the table of teachers on the meta device, by its description; each tokenizer once."""
    networks: dict[str, tuple[Part, nn.Module]] = {}
    with on_meta_device():
        for name, published in TEACHERS.items():
            networks[f"transformer of {name}"] = (published.transformer, published_transformer(name))
            description = f"tokenizer {published.tokenizer.file.name}"
            if description not in networks:
                tokenizer = family_of(published.family).tokenizer(published.tokenizer.config)
                networks[description] = (published.tokenizer, tokenizer)
        networks[f"tokenizer {VQ8.file.name}"] = (VQ8, family_of("llamagen").tokenizer(VQ8.config))
    return networks


def inspect(path: Path, tables: Mapping[str, tuple[Part, nn.Module]]) -> list[Fit]:
    """Compare a file's tensors with every network of the tables; return those that fit, or else only the nearest.

    Raises:
        Refused: the file cannot be read, or has no tensors in any network's container.
    """
    checkpoint = read_checkpoint(path)
    fits = [
        Fit(name, place, tuple(checkpoint.problems(part, network)))
        for name, (part, network) in tables.items()
        if (place := checkpoint.place(part)) is not None
    ]
    if not fits:
        raise Refused(
            f"{path} contains no named tensors where published files have them; it contains {checkpoint.summary()}"
        )
    return [fit for fit in fits if not fit.problems] or [min(fits, key=lambda fit: len(fit.problems))]


def describe(fits: Sequence[Fit]) -> list[str]:
    """The result of `inspect` in lines of text."""
    if fits[0].problems:
        nearest = fits[0]
        return [f"fits no published network; the nearest is the {nearest.network}: {join_first(nearest.problems)}"]
    lines = []
    for place in dict.fromkeys(fit.place for fit in fits):
        names = [fit.network for fit in fits if fit.place == place]
        where = f", at {'.'.join(place)}," if place else ""
        lines += [f"fits{where} the {name}" for name in names]
        if len(names) > 1:
            lines.append("these have the same names and shapes, so the file alone cannot distinguish them")
    return lines
