"""Names of sampling methods, parsed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from distill.student.sampler import first_timesteps
from distill.student.student import Student
from generate_pairs.teachers.base import TokenLayout
from shards.core.errors import Refused


@dataclass(frozen=True)
class Method:
    """A way to make images: the student's passes alone, or a method that needs its teacher."""

    name: str
    timesteps: tuple[int, ...] | None
    """Where the student alone passes; None where the teacher is needed."""

    @classmethod
    def of_student(cls, timesteps: tuple[int, ...]) -> Method:
        """The student's passes at these timesteps."""
        return cls(f"student-{len(timesteps)}", timesteps)

    @classmethod
    def parse(cls, name: str, student: Student) -> Method:
        """The method of this name.

        Raises:
            Refused: there is none, or it has steps that the teacher or the student does not have.
        """
        if name in ("teacher", "teacher-flow"):
            return cls(name, None)
        if name.startswith("pre-trained-"):
            return cls(PreTrained.parse(name, student.layout).name, None)
        if found := re.fullmatch(r"student-(\d+)", name):
            return cls.of_student(first_timesteps(student.timesteps, int(found[1])))
        raise Refused(
            f"{name!r} is no method to sample with: there are student-K, pre-trained-N-M, pre-trained-N-M-flow, "
            "teacher and teacher-flow"
        )

    def num_steps(self, layout: TokenLayout) -> int:
        """Network passes that make one image, as the paper counts them."""
        if self.timesteps is not None:
            return len(self.timesteps)
        if self.name.startswith("pre-trained-"):
            return PreTrained.parse(self.name, layout).num_steps(layout)
        return layout.num_steps

    def untrained_timesteps(self, student: Student) -> list[int]:
        """Timesteps at which the student passes and was not trained."""
        passes = list(self.timesteps or ())
        if self.name.startswith("pre-trained-"):
            method = PreTrained.parse(self.name, student.layout)
            passes = [0] if method.first > 1 else []
            passes += [method.last - 1] if method.last - 1 < student.layout.num_steps else []
        return [timestep for timestep in passes if timestep not in student.timesteps]

    def describe(self) -> str:
        """Its name and, of a student's, the timesteps."""
        return (
            self.name if self.timesteps is None else f"{self.name}, timesteps {join_numbers(self.timesteps)}"
        )


def join_numbers(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


@dataclass(frozen=True)
class PreTrained:
    """pre-trained-n-m: `first` is n, `last` is m, both counted from 1 as in the paper.

    The teacher draws its tokens or, in pre-trained-n-m-flow, maps each position's own noise to them.
    """

    first: int
    last: int
    from_noise: bool = False

    @property
    def name(self) -> str:
        return f"pre-trained-{self.first}-{self.last}{'-flow' if self.from_noise else ''}"

    def num_steps(self, layout: TokenLayout) -> int:
        """Network passes that make one image, as the paper counts them: a guided pass is one, and so is a prefix."""
        finishes = self.last - 1 < layout.num_steps
        return (self.first > 1) + (self.last - self.first) + finishes

    @classmethod
    def parse(cls, name: str, layout: TokenLayout) -> PreTrained:
        """The method of this name.

        Raises:
            Refused: it has another form, or steps that the teacher does not have.
        """
        found = re.fullmatch(r"pre-trained-(\d+)-(\d+)(-flow)?", name)
        if found is None:
            raise Refused(
                f"{name!r} is no teacher-involved method: write pre-trained-N-M or pre-trained-N-M-flow, as in "
                "pre-trained-1-6"
            )
        method = cls(int(found[1]), int(found[2]), found[3] is not None)
        if not 1 <= method.first < method.last <= layout.num_steps + 1:
            raise Refused(
                f"{name}: this teacher has {layout.num_steps} AR steps, so 1 <= N < M <= {layout.num_steps + 1}"
            )
        return method


def usual_methods(timesteps: tuple[int, ...]) -> tuple[PreTrained, ...]:
    """What the paper shows for a student that finishes at timestep k, its last one: all of the steps before k re-made by
    the teacher, about the later half of them, about the last quarter. None where there is no such step.

    For k = 5 these are pre-trained-1-6, 4-6 and 5-6, for k = 80 pre-trained-1-81, 41-81 and 61-81, as in its Table 2.
    """
    k = timesteps[-1]
    starts = sorted({0, -(-k // 2), -(-3 * k // 4)})
    return tuple(PreTrained(start + 1, k + 1) for start in starts if start < k)
