"""Sampling methods and the parser of their names."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from distill.student.sampler import first_timesteps
from distill.student.student import Student
from generate_pairs.teachers.base import TokenLayout
from shards.core.errors import Refused


class Method(ABC):
    """A way of generating images. Methods are frozen dataclasses, so they compare equal by their parameters."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in options, in evaluation.json and in file names."""

    @abstractmethod
    def num_steps(self, layout: TokenLayout) -> int:
        """Network passes per image, as the paper counts them: a guided pass is one, and so is a prefix."""

    def student_timesteps(self, layout: TokenLayout) -> tuple[int, ...]:
        """Timesteps at which the student makes a pass."""
        return ()

    def untrained_timesteps(self, student: Student) -> list[int]:
        """Timesteps at which the student makes a pass without having been trained there."""
        return [t for t in self.student_timesteps(student.layout) if t not in student.timesteps]

    def describe(self) -> str:
        """The name and, for student-K, the timesteps."""
        return self.name


@dataclass(frozen=True)
class StudentAlone(Method):
    """student-K: one pass of the student at each timestep."""

    timesteps: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"student-{len(self.timesteps)}"

    def num_steps(self, layout: TokenLayout) -> int:
        return len(self.timesteps)

    def student_timesteps(self, layout: TokenLayout) -> tuple[int, ...]:
        return self.timesteps

    def describe(self) -> str:
        return f"{self.name}, timesteps {join_numbers(self.timesteps)}"


@dataclass(frozen=True)
class PreTrained(Method):
    """pre-trained-N-M: `first` is N, `last` is M, both counted from 1 as in the paper.

    The teacher draws its tokens or, in pre-trained-N-M-flow, maps each position's own noise to them.
    """

    first: int
    last: int
    from_noise: bool = False

    @property
    def name(self) -> str:
        return f"pre-trained-{self.first}-{self.last}{'-flow' if self.from_noise else ''}"

    def num_steps(self, layout: TokenLayout) -> int:
        return len(self.student_timesteps(layout)) + self.last - self.first

    def student_timesteps(self, layout: TokenLayout) -> tuple[int, ...]:
        prefix = (0,) if self.first > 1 else ()
        return prefix if self.last > layout.num_steps else (*prefix, self.last - 1)


@dataclass(frozen=True)
class TeacherAlone(Method):
    """teacher: tokens are drawn. teacher-flow: the flow map computes them from each position's own noise."""

    from_noise: bool = False

    @property
    def name(self) -> str:
        return "teacher-flow" if self.from_noise else "teacher"

    def num_steps(self, layout: TokenLayout) -> int:
        return layout.num_steps


@dataclass(frozen=True)
class OnestepStar(Method):
    """onestep*: each position is drawn independently from its token frequencies."""

    name = "onestep*"

    def num_steps(self, layout: TokenLayout) -> int:
        return 1


@dataclass(frozen=True)
class SkipN(Method):
    """skip-N: the teacher without its last N AR steps."""

    n: int

    @property
    def name(self) -> str:
        return f"skip-{self.n}"

    def num_steps(self, layout: TokenLayout) -> int:
        return layout.num_steps - self.n


TEACHER, TEACHER_FLOW, ONESTEP_STAR = TeacherAlone(), TeacherAlone(from_noise=True), OnestepStar()


def parse_method(name: str, layout: TokenLayout, timesteps: tuple[int, ...]) -> Method:
    """Parse the name of a method that a student and its teacher can sample with, without training pairs.

    `layout` is the teacher's, and the student was trained at `timesteps`.

    Raises:
        Refused: the name is unknown, or it contains steps that the teacher or the student does not have.
    """
    if name in (TEACHER.name, TEACHER_FLOW.name):
        return TEACHER if name == TEACHER.name else TEACHER_FLOW
    if match := re.fullmatch(r"student-(\d+)", name):
        return StudentAlone(first_timesteps(timesteps, int(match[1])))
    if match := re.fullmatch(r"pre-trained-(\d+)-(\d+)(-flow)?", name):
        method = PreTrained(int(match[1]), int(match[2]), match[3] is not None)
        if not 1 <= method.first < method.last <= layout.num_steps + 1:
            raise Refused(
                f"{name}: this teacher has {layout.num_steps} AR steps, so 1 <= N < M <= {layout.num_steps + 1}"
            )
        return method
    if name.startswith("pre-trained-"):
        raise Refused(
            f"{name!r} is no teacher-involved method: write pre-trained-N-M or pre-trained-N-M-flow, as in "
            "pre-trained-1-6"
        )
    raise Refused(
        f"{name!r} is no method to sample with: use student-K, pre-trained-N-M, pre-trained-N-M-flow, "
        "teacher or teacher-flow"
    )


def default_pre_trained(timesteps: tuple[int, ...]) -> tuple[PreTrained, ...]:
    """The methods that the paper shows for a student whose last timestep is k.

    The teacher generates all of the steps before k, about the later half of them, or about the last quarter. For k = 5
    these are pre-trained-1-6, 4-6 and 5-6, for k = 80 pre-trained-1-81, 41-81 and 61-81, as in its Table 2. A student
    with k = 0 has none.
    """
    k = timesteps[-1]
    starts = sorted({0, -(-k // 2), -(-3 * k // 4)})
    return tuple(PreTrained(start + 1, k + 1) for start in starts if start < k)


def join_numbers(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
