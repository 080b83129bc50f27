"""Families of teachers: the built-in ones and those of other installed packages.

A package adds a family by an entry point of the group `tokenleap.teachers`: its name is the family's name, its object a
`Family`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from generate_pairs.teachers.base import Teacher, Tokenizer
from generate_pairs.teachers.llamagen.teacher import LlamaGenTeacher
from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizer, LlamaGenTokenizerConfig
from generate_pairs.teachers.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer
from generate_pairs.teachers.var.teacher import VarTeacher
from generate_pairs.teachers.var.tokenizer import VarTokenizer, VarTokenizerConfig
from generate_pairs.teachers.var.transformer import VarConfig, VarTransformer
from shards.core.errors import Refused

ENTRY_POINTS = "tokenleap.teachers"


@dataclass(frozen=True)
class Family:
    """The classes that one family of teachers is built from.

    Attributes:
        teacher: (transformer, tokenizer) -> Teacher.
        transformer: its configuration -> the network, which stores it as `config`.
        transformer_config: a frozen dataclass of numbers, strings, booleans and tuples of these.
        tokenizer: its configuration -> Tokenizer.
        tokenizer_config: as `transformer_config`.
    """

    teacher: Callable[[Any, Any], Teacher]
    transformer: Callable[[Any], Any]
    transformer_config: Callable[..., Any]
    tokenizer: Callable[[Any], Tokenizer]
    tokenizer_config: Callable[..., Any]


FAMILIES: Mapping[str, Family] = {
    "llamagen": Family(LlamaGenTeacher, LlamaGenTransformer, LlamaGenConfig, LlamaGenTokenizer, LlamaGenTokenizerConfig),
    "var": Family(VarTeacher, VarTransformer, VarConfig, VarTokenizer, VarTokenizerConfig),
}
"""The built-in families."""


def family_of(name: str) -> Family:
    """A family by its name.

    Raises:
        Refused: the name is unknown, or the package that adds it cannot be imported.
    """
    return FAMILIES.get(name) or plugin(ENTRY_POINTS, name, "family of teachers", FAMILIES)


def plugin(group: str, name: str, kind: str, built_in: Iterable[str]) -> Any:
    """The object that another installed package registers by an entry point.

    The messages contain the kind of the object and the names that this project has itself.

    Raises:
        Refused: nothing is registered under that name, or it cannot be imported.
    """
    entries = {entry.name: entry for entry in entry_points(group=group)}
    if name not in entries:
        raise Refused(
            f"no {kind} is called {name!r}: there are {', '.join([*built_in, *sorted(entries)])}. Another package "
            f"can add one by an entry point of the group {group}"
        )
    try:
        return entries[name].load()
    except (ImportError, AttributeError) as error:
        raise Refused(
            f"the {kind} {name!r} comes from {entries[name].value}, which cannot be imported: {error}"
        ) from error


def build_tokenizer(family: str, config: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer with fresh weights from its configuration as read from JSON (lists for tuples)."""
    classes = family_of(family)
    return classes.tokenizer(classes.tokenizer_config(**_tuples(config)))


def build_teacher(family: str, transformer: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> Teacher:
    """A teacher with fresh weights from its configurations as read from JSON."""
    network = family_of(family).transformer(transformer_config(family, transformer))
    return family_of(family).teacher(network, build_tokenizer(family, tokenizer))


def transformer_config(family: str, config: Mapping[str, Any]) -> Any:
    """A family's transformer configuration as read from JSON."""
    return family_of(family).transformer_config(**_tuples(config))


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
