"""Student networks by their family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from distill.student.llamagen import LlamaGenStudent
from distill.student.var import VarStudent
from generate_pairs.teachers.base import TextCondition
from generate_pairs.teachers.registry import plugin

ENTRY_POINTS = "tokenleap.students"
"""Other packages bring the student of their family by an entry point of this group, named like the family."""


class Network(Protocol):
    """A family's student network, an `nn.Module` too: what official LlamaGen-DD and VAR-DD have in common.

    One that has a method `logits` of the same arguments is asked for these alone where nobody wants embeddings.
    """

    config: Any
    """Has `num_classes`; the frozen dataclass that the teacher's transformer is built from."""

    def __call__(
        self, x_BLC: Tensor, data_tokens_B: Tensor, condition: Tensor | TextCondition
    ) -> tuple[Tensor, Tensor]:
        """Data rows, then noise, how many positions are data, and classes (B,) or, where the teacher is conditioned on
        text, captions, to logits (B, L, V) and embeddings (B, L, C).
        """
        ...

    def initialise_from_teacher(self, teacher: Any) -> None:
        """Copy what the two have in common."""
        ...


STUDENTS: Mapping[str, Callable[[Any, int], Any]] = {
    "llamagen": LlamaGenStudent,
    "var": lambda config, codebook_dim: VarStudent(config),
}
"""Networks of this package by their teacher's family."""


def student_of(family: str) -> Callable[[Any, int], Any]:
    """What makes a family's student `Network` from the configuration of the teacher's transformer and C.

    Raises:
        Refused: no student is known for the family.
    """
    return STUDENTS[family] if family in STUDENTS else plugin(ENTRY_POINTS, family, "student", STUDENTS)


def build_network(family: str, config: Any, codebook_dim: int) -> Any:
    """A family's student `Network` with fresh weights; `config` is that of the teacher's transformer.

    Raises:
        Refused: no student is known for the family.
    """
    return student_of(family)(config, codebook_dim)
