"""Student networks by family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from distill.student.llamagen import LlamaGenStudent
from distill.student.var import VarStudent
from generate_pairs.teachers.base import TextCondition
from generate_pairs.teachers.registry import plugin

ENTRY_POINTS = "tokenleap.students"
"""Entry point group with which other packages add a student network, under the name of the family."""


class Network(Protocol):
    """Interface of a family's student network, which is also an `nn.Module`; as official LlamaGen-DD and VAR-DD.

    If it also has a method `logits` with the same arguments, that is called where embeddings are not needed.
    """

    config: Any
    """The frozen dataclass that configures the teacher's transformer; has `num_classes`."""

    def __call__(self, x_BLC: Tensor, data_tokens_B: Tensor, condition: Tensor | TextCondition) -> tuple[Tensor, Tensor]:
        """Predict logits (B, L, V) and embeddings (B, L, C).

        Args:
            x_BLC: Codebook rows in the first `data_tokens_B` positions, noise after them.
            data_tokens_B: Number of positions that are data, int64.
            condition: Classes (B,), int64, or captions for a text-conditional teacher.
        """
        ...

    def initialise_from_teacher(self, teacher: Any) -> None:
        """Copy the weights that student and teacher have in common."""
        ...


STUDENTS: Mapping[str, Callable[[Any, int], Any]] = {
    "llamagen": LlamaGenStudent,
    "var": lambda config, codebook_dim: VarStudent(config),
}
"""Network constructors of this package by family."""


def student_factory(family: str) -> Callable[[Any, int], Any]:
    """The constructor of a family's `Network`, from the configuration of the teacher's transformer and C.

    Raises:
        Refused: The family has no student.
    """
    return STUDENTS[family] if family in STUDENTS else plugin(ENTRY_POINTS, family, "student", STUDENTS)
