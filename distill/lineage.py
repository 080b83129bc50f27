"""Loads the teacher of pairs or of a student, and refuses a different teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distill.student.student import Student
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from shards.core.errors import Refused
from shards.dataset.manifest import Manifest


def load_teacher_of_pairs(
    manifest: Manifest,
    teacher: str | LoadedTeacher,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedTeacher:
    """Load the teacher that generated a data set, from its name or file, or check and convert one that is loaded.

    Raises:
        Refused: The teacher does not exist or did not generate these pairs.
    """
    if isinstance(teacher, str):
        loaded, name = load_teacher(teacher, device, dtype), teacher
    else:
        loaded, name = teacher.converted(device, dtype), teacher.name
    _refuse_other_teacher(f"the pairs in {manifest.root}", manifest.spec.lineage, loaded, name)
    return loaded


def load_teacher_of_student(
    student: Student, teacher_name: str | None, device: torch.device | str = "cpu"
) -> LoadedTeacher:
    """Load the teacher that generated a student's pairs, in the dtype that it used for them.

    `teacher_name` is its name or file; None for the name in the lineage.

    Raises:
        Refused: The student records no lineage, or the teacher is missing or a different one.
    """
    if student.lineage is None:
        raise Refused(
            "this student's config.json names no lineage, so its teacher is unknown. Published students have none. "
            "For an older export, run the same `tokenleap distill` again if its checkpoint is still readable. "
            "Without a teacher, sample with --steps or --timesteps"
        )
    recorded = student.lineage["teacher"]
    name = teacher_name or recorded["name"]
    try:
        loaded = load_teacher(name, device, getattr(torch, recorded["dtype"]))
    except Refused as error:
        raise Refused(
            f"the teacher of this student, {recorded['name']} ({recorded['sha256'][:12]}), is needed: {error}. "
            "Give its location with --teacher NAME-OR-FILE"
        ) from error
    _refuse_other_teacher("the pairs of this student", student.lineage, loaded, name)
    return loaded


def _refuse_other_teacher(pairs: str, lineage: Mapping[str, Any], loaded: LoadedTeacher, name: str) -> None:
    recorded = lineage["teacher"]
    if loaded.sha256 != recorded["sha256"]:
        raise Refused(
            f"{pairs} were made by teacher {recorded['name']} ({recorded['sha256'][:12]}), "
            f"not by {name} ({loaded.sha256[:12]})"
        )
