"""Teachers: their interface, the two built-in families, and the sources of their weights.

A package that adds a family imports these names. Each is imported on first use, so this module does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generate_pairs.teachers.base import Decoding, Teacher, Tokenizer, TokenLayout
    from generate_pairs.teachers.registry import Family

__all__ = ["Decoding", "Family", "Teacher", "TokenLayout", "Tokenizer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'registry' if name == 'Family' else 'base'}"), name)
