"""Stage two: trains a student on pairs, samples it and evaluates it.

`from distill import Student` loads torch only on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.student.student import Student

__all__ = ["Student"]


def __getattr__(name: str) -> type[Student]:
    if name == "Student":
        from distill.student.student import Student

        return Student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
