"""Families of teachers: the classes that each is built from, ours and those that other packages bring.

A package brings one by an entry point of the group `tokenleap.teachers`: its name is the family's, its object a `Family`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from generate_pairs.teachers.base import Teacher, Tokenizer
from generate_pairs.teachers.llamagen.teacher import LlamaGenConfig, LlamaGenTeacher, LlamaGenTransformer
from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizer, LlamaGenTokenizerConfig
from generate_pairs.teachers.var.teacher import VarConfig, VarTeacher, VarTransformer
from generate_pairs.teachers.var.tokenizer import VarTokenizer, VarTokenizerConfig
from shards.core.errors import Refused

ENTRY_POINTS = "tokenleap.teachers"


@dataclass(frozen=True)
class Family:
    """The classes that one family of teachers is built from.

    Attributes:
        teacher: (transformer, tokenizer) -> Teacher.
        transformer: its configuration -> the network, which keeps it as `config`.
        transformer_config: a frozen dataclass of numbers, texts, booleans and tuples of these.
        tokenizer: its configuration -> Tokenizer.
        tokenizer_config: as `transformer_config`.
    """

    teacher: Callable[[Any, Any], Teacher]
    transformer: Callable[[Any], Any]
    transformer_config: Callable[..., Any]
    tokenizer: Callable[[Any], Tokenizer]
    tokenizer_config: Callable[..., Any]


FAMILIES: Mapping[str, Family] = {
    "llamagen": Family(
        LlamaGenTeacher, LlamaGenTransformer, LlamaGenConfig, LlamaGenTokenizer, LlamaGenTokenizerConfig
    ),
    "var": Family(VarTeacher, VarTransformer, VarConfig, VarTokenizer, VarTokenizerConfig),
}
"""Those of this package."""


def family_of(name: str) -> Family:
    """A family by its name.

    Raises:
        Refused: there is none of that name, or the package that brings it is broken.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    return plugin(ENTRY_POINTS, name, "family of teachers", FAMILIES)


def plugin(group: str, name: str, what: str, ours: Mapping[str, Any]) -> Any:
    """What another installed package registers under a name.

    Args:
        group: of entry points.
        name: of the entry point.
        what: is looked for, in words.
        ours: what this package has itself, for the message.

    Raises:
        Refused: nothing is registered under that name, or it cannot be imported.
    """
    found = {entry.name: entry for entry in entry_points(group=group)}
    if name not in found:
        raise Refused(
            f"no {what} is called {name!r}: there are {', '.join([*ours, *sorted(found)])}. Another package can "
            f"bring one, by an entry point of the group {group}"
        )
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise Refused(
            f"the {what} {name!r} comes from {found[name].value}, which cannot be imported: {error}"
        ) from error


def build_tokenizer(family: str, config: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer with fresh weights from its configuration as JSON holds it (lists for tuples)."""
    parts = family_of(family)
    return parts.tokenizer(parts.tokenizer_config(**_tuples(config)))


def build_teacher(family: str, transformer: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> Teacher:
    """A teacher with fresh weights."""
    core = family_of(family).transformer(transformer_config(family, transformer))
    return family_of(family).teacher(core, build_tokenizer(family, tokenizer))


def transformer_config(family: str, config: Mapping[str, Any]) -> Any:
    """A family's transformer configuration from what JSON holds of it."""
    return family_of(family).transformer_config(**_tuples(config))


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
