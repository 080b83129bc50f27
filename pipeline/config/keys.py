"""The settings as dotted keys: which there are, what each may hold, and errors about them in words."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}

_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "pattern": "matching"}
"""The attributes that carry a field's limits, whatever classes pydantic keeps them in."""


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a settings model with its field, nested sections as dotted keys."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def nearest(word: str, words: Sequence[str]) -> str | None:
    """The word most like the given one; a key's last part counts as much as the whole key."""
    by_end = {candidate.rpartition(".")[2]: candidate for candidate in words}
    whole = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    end = difflib.get_close_matches(word.rpartition(".")[2], list(by_end), n=1, cutoff=0.6)
    return whole[0] if whole else by_end[end[0]] if end else None


def is_list(annotation: Any) -> bool:
    """Whether a field of this type holds several values, also where it may be left to a default."""
    return any(get_origin(option) is tuple for option in (annotation, *get_args(annotation)))


def kind(annotation: Any) -> str:
    """A field's type in words, as in `a whole number`."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        members = [argument for argument in arguments if argument is not Ellipsis]
        if members[0] is str:
            return 'a list of text, as in ["one", "two"]'
        many = "numbers" if len(arguments) > len(members) else f"{len(members)} numbers"
        return f"{'whole ' if members[0] is int else ''}{many} separated by commas"
    if origin in (types.UnionType, Union):
        return " or ".join(kind(argument) for argument in arguments if argument is not type(None))
    return str(getattr(annotation, "__name__", annotation))


def bounds(field: FieldInfo) -> str:
    """A field's range in words, as in `above 0, at most 1`; empty where everything goes."""
    return ", ".join(
        f"{words} {limit}"
        for rule in field.metadata
        for name, words in _LIMITS.items()
        if (limit := getattr(rule, name, None)) is not None
    )


def describe_errors(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Everything that settings were refused for, one line a key: what it holds, what it may hold.

    Args:
        error: what pydantic found.
        model: the settings that were validated; without it types and ranges are pydantic's words.
    """
    fields = dict(leaves(model)) if model else {}
    sections = {key.rpartition(".")[0] for key in fields}
    lines = []
    for found in error.errors(include_url=False):
        path = [str(part) for part in found["loc"]]
        key = ".".join(path)
        # Members of a tuple, and the types that a key may have, are errors of the key.
        starts = (".".join(path[:length]) for length in range(len(path), 0, -1))
        owner = next((start for start in starts if start in fields), None)
        value = repr(found["input"])
        if found["type"] == "extra_forbidden":
            lines.append(unknown_key(key, list(fields)))
        elif found["type"] == "missing" and owner in (None, key):
            lines.append(f"{key} is missing and has no default")
        elif key in sections:
            lines.append(f"{key} is a section, not a value: set one of its keys, as in {key}.KEY=VALUE")
        elif found["type"] == "value_error":
            lines.append(f"{key}: {found['ctx']['error']}")
        elif owner:
            wanted = ", ".join(filter(None, [kind(fields[owner].annotation), bounds(fields[owner])]))
            lines.append(f"{owner} cannot be {value}: it is {wanted}")
        else:
            lines.append(f"{key} cannot be {value}: {found['msg']}")
    return "; ".join(dict.fromkeys(lines))


def unknown_key(key: str, keys: Sequence[str]) -> str:
    """The complaint about a key that is not there, with the nearest one that is."""
    hint = nearest(key, keys)
    if hint:
        return f"there is no key {key}; the nearest is {hint}"
    return f"there is no key {key}; keys are {', '.join(keys)}"
