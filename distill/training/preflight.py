"""Checks of a training before any work."""

from __future__ import annotations

from pathlib import Path

from distill.config import DistillConfig, noise_weight_error
from distill.student.networks import student_factory
from distill.training.checkpoint import refuse_other_training, training_identity
from distill.training.memory import MemoryNeed
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.checkpoints import LoadedTeacher
from shards.core.errors import Refused
from shards.dataset.manifest import Manifest
from shards.storage.paths import Location


def check_distillation(config: DistillConfig, layout: TokenLayout, heldout: int) -> None:
    """Check the settings of stage two against the teacher's layout and the number of held-out pairs.

    Raises:
        Refused: A timestep or the split is out of range, a head that predicts tokens has no loss, or no pairs are held
            out.
    """
    student, train, num_steps = config.student, config.train, layout.num_steps
    if student.timesteps[-1] >= num_steps:
        raise Refused(f"student.timesteps: {student.timesteps[-1]} is not below {num_steps}, the teacher's AR steps")
    weights = train.timestep_weights
    if weights is not None and len(weights) != len(student.timesteps):
        raise Refused(
            f"train.timestep_weights has {len(weights)} numbers for {len(student.timesteps)} timesteps: "
            "give one for each of student.timesteps"
        )
    if error := noise_weight_error(student.noise_weight, student.timesteps):
        raise Refused(f"student.noise_weight has {error}")
    if student.split > num_steps:
        raise Refused(f"student.split: {student.split} is more than {num_steps}, the teacher's AR steps")
    if student.split > 0 and not train.token_weight and not train.image_weight:
        raise Refused(
            f"student.split is {student.split}, so the token head makes the first {student.split} AR steps, but it "
            "learns nothing: set train.token_weight above 0, or student.split to 0 and train.embedding_weight above 0"
        )
    if student.split < num_steps and not train.embedding_weight:
        raise Refused(
            f"student.split is {student.split}, so the continuous head makes the AR steps from there to {num_steps}, "
            f"but it learns nothing: set student.split to {num_steps}, or train.embedding_weight above 0"
        )
    if heldout < 1:
        raise Refused("pairs.num_heldout is 0, but a training is evaluated on held-out pairs: hold out at least 1")


def checked_manifest(config: DistillConfig, pairs_root: Location) -> Manifest:
    """Open a data set and check the settings of stage two against it.

    Raises:
        Refused: There is no data set, its teacher's family has no student, or as `check_distillation`.
    """
    manifest = Manifest.open(pairs_root)
    check_distillation(config, TokenLayout(manifest.spec.tokens_per_step), manifest.spec.num_heldout)
    student_factory(manifest.spec.lineage["teacher"]["family"])
    return manifest


def refuse_training(config: DistillConfig, pairs_root: Location, out: Path, size: int | None) -> Manifest:
    """Check everything that can be checked without loading the teacher or writing a file; returns the data set.

    Raises:
        Refused: As `checked_manifest`; or there are too few pairs, or a checkpoint of another training or of more
            steps.
    """
    manifest = checked_manifest(config, pairs_root)
    identity = training_identity(config, manifest.view(size))
    refuse_other_training(out / "checkpoints", identity, config.train.num_steps)
    return manifest


def training_plan(config: DistillConfig, size: int, loaded: LoadedTeacher | None = None) -> list[str]:
    """Describe a training; with the teacher, also the memory of one process.

    Raises:
        Refused: As `MemoryNeed.of`.
    """
    train = config.train
    at_once = train.batch_size if train.device_batch_size == "auto" else int(train.device_batch_size)
    memory = [MemoryNeed.of(loaded, train).describe(min(at_once, train.batch_size))] if loaded else []
    return [
        f"a student at timesteps {list(config.student.timesteps)}, split {config.student.split}",
        f"{train.num_steps:,} steps of {train.batch_size:,} pairs: "
        f"{train.num_steps * train.batch_size / size:.1f} epochs of {size:,} pairs",
        *memory,
    ]
