"""What stage two can be refused for before any work: settings that do not fit the teacher, pairs of another one."""

from __future__ import annotations

import torch

from distill.config import DistillConfig
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from shards.errors import Refused
from shards.manifest import Manifest


def check_distillation(config: DistillConfig, layout: TokenLayout, heldout: int) -> None:
    """Hold stage two's settings against the teacher's layout.

    Args:
        config: stage two's settings.
        layout: the teacher's.
        heldout: how many pairs are, or will be, held out.

    Raises:
        Refused: a timestep or the split lies outside the AR steps, a head that makes tokens would learn nothing, or
            no pairs are held out.
    """
    student, train, num_steps = config.student, config.train, layout.num_steps
    if student.timesteps[-1] >= num_steps:
        raise Refused(
            f"student.timesteps: {student.timesteps[-1]} is not below {num_steps}, the teacher's AR steps"
        )
    weights = train.timestep_weights
    if weights is not None and len(weights) != len(student.timesteps):
        raise Refused(
            f"train.timestep_weights holds {len(weights)} numbers for {len(student.timesteps)} timesteps: "
            "give one for each of student.timesteps"
        )
    if student.split > num_steps:
        raise Refused(f"student.split: {student.split} is more than {num_steps}, the teacher's AR steps")
    if student.split > 0 and not train.token_weight and not train.image_weight:
        raise Refused(
            f"student.split is {student.split}, so the token head makes the first {student.split} AR steps, but it "
            "learns nothing: set train.token_weight above 0, or student.split to 0 and train.embedding_weight "
            "above 0"
        )
    if student.split < num_steps and not train.embedding_weight:
        raise Refused(
            f"student.split is {student.split}, so the continuous head makes the AR steps from there to {num_steps}, "
            f"but it learns nothing: set student.split to {num_steps}, or train.embedding_weight above 0"
        )
    if heldout < 1:
        raise Refused(
            "pairs.num_heldout is 0, and a training is watched on held-out pairs: hold out at least 1"
        )


def load_maker(manifest: Manifest, teacher_name: str, dtype: torch.dtype = torch.float32) -> LoadedTeacher:
    """Load the teacher that made a data set's pairs; `dtype` is its transformer's.

    Raises:
        Refused: the teacher of this name is another one, or there is none.
    """
    loaded = load_teacher(teacher_name, dtype=dtype)
    made_by = manifest.spec.lineage["teacher"]
    if loaded.sha256 != made_by["sha256"]:
        raise Refused(
            f"the pairs in {manifest.root} were made by teacher {made_by['name']} ({made_by['sha256'][:12]}), "
            f"not by {teacher_name} ({loaded.sha256[:12]})"
        )
    return loaded
