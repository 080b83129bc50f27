"""What stage two can be refused for before any work: settings that do not fit the teacher, pairs of another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distill.student.student import Student
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from shards.core.errors import Refused
from shards.dataset.manifest import Manifest


def load_teacher_of_pairs(
    manifest: Manifest, teacher_name: str, dtype: torch.dtype = torch.float32
) -> LoadedTeacher:
    """Load the teacher that made a data set's pairs; `dtype` is its transformer's.

    Raises:
        Refused: the teacher of this name is another one, or there is none.
    """
    loaded = load_teacher(teacher_name, dtype=dtype)
    refuse_other_teacher(f"the pairs in {manifest.root}", manifest.spec.lineage, loaded, teacher_name)
    return loaded


def load_teacher_of_student(
    student: Student, teacher_name: str | None, device: torch.device | str = "cpu"
) -> LoadedTeacher:
    """Load the teacher that made a student's pairs, computing as it did then.

    Args:
        student: whose export tells its lineage.
        teacher_name: where the teacher is found, if not under the name that the lineage records.
        device: of the teacher.

    Raises:
        Refused: the student does not know its teacher, that is not here, or another one is.
    """
    if student.lineage is None:
        raise Refused(
            "this student's config.json names no lineage, so its teacher and that teacher's settings are unknown. If it "
            "was exported before lineages were recorded, and its checkpoint can still be read, run the same `tokenleap "
            "distill` again; a published student has no lineage. Sample it without a teacher, with --steps or --timesteps"
        )
    made_by = student.lineage["teacher"]
    way = "--teacher NAME-OR-FILE tells where it is"
    try:
        loaded = load_teacher(teacher_name or made_by["name"], device, getattr(torch, made_by["dtype"]))
    except Refused as error:
        raise Refused(
            f"the teacher of this student, {made_by['name']} ({made_by['sha256'][:12]}), is needed: {error}. {way}"
        ) from error
    refuse_other_teacher(
        "the pairs of this student", student.lineage, loaded, teacher_name or made_by["name"]
    )
    return loaded


def refuse_other_teacher(pairs: str, lineage: Mapping[str, Any], loaded: LoadedTeacher, name: str) -> None:
    """Confirm that a teacher is the one that made pairs.

    Raises:
        Refused: it is another one.
    """
    made_by = lineage["teacher"]
    if loaded.sha256 != made_by["sha256"]:
        raise Refused(
            f"{pairs} were made by teacher {made_by['name']} ({made_by['sha256'][:12]}), "
            f"not by {name} ({loaded.sha256[:12]})"
        )
