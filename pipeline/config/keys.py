"""The settings as dotted keys, their types and ranges, and readable validation errors."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.nearest import nearest
from shards.core.errors import join_first

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}

_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "pattern": "matching"}
"""Attributes with a field's limits; pydantic stores them in several classes."""


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of a settings model with its field, nested sections included."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def is_list(annotation: Any) -> bool:
    """Whether a field of this type may have several values; optional types count."""
    return any(get_origin(option) is tuple for option in (annotation, *get_args(annotation)))


def kind(annotation: Any) -> str:
    """Describe a field's type, as in `a whole number`."""
    if annotation in _TYPE_NAMES:
        return _TYPE_NAMES[annotation]
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
    """Describe a field's range, as in `above 0, at most 1`; empty if it has none."""
    return ", ".join(
        f"{description} {limit}"
        for rule in field.metadata
        for name, description in _LIMITS.items()
        if (limit := getattr(rule, name, None)) is not None
    )


def describe_errors(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Describe the first validation errors: each key with its value and the values that are valid.

    Without `model`, the class of the settings, pydantic's own messages describe types and ranges.
    """
    fields = dict(leaves(model)) if model else {}
    sections = {key.rpartition(".")[0] for key in fields}
    lines = []
    for detail in error.errors(include_url=False):
        path = [str(part) for part in detail["loc"]]
        key = ".".join(path)
        # An error in a member of a tuple or in one type of a union belongs to the key.
        prefixes = (".".join(path[:length]) for length in range(len(path), 0, -1))
        owner = next((prefix for prefix in prefixes if prefix in fields), None)
        value = repr(detail["input"])
        if detail["type"] == "extra_forbidden":
            lines.append(unknown_key(key, list(fields)))
        elif detail["type"] == "missing" and owner in (None, key):
            lines.append(f"{key} is missing and has no default")
        elif key in sections:
            lines.append(f"{key} is a section, not a value: set one of its keys, as in {key}.KEY=VALUE")
        elif detail["type"] == "value_error":
            lines.append(f"{key}: {detail['ctx']['error']}")
        elif owner:
            valid = ", ".join(filter(None, [kind(fields[owner].annotation), bounds(fields[owner])]))
            lines.append(f"{owner} cannot be {value}: it is {valid}")
        else:
            lines.append(f"{key} cannot be {value}: {detail['msg']}")
    return join_first(list(dict.fromkeys(lines)))


def unknown_key(key: str, keys: Sequence[str]) -> str:
    """The message about an unknown key, with the nearest known one."""
    hint = nearest(key, keys)
    return f"there is no key {key}; " + (f"the nearest is {hint}" if hint else "`tokenleap settings` lists all keys")
