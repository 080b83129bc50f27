"""The full resumable state of a training: tensors in safetensors, the rest in a JSON beside, which is the mark.

`step-000500.json` is committed after `step-000500.safetensors` and holds its sha256, so a killed writer leaves at
worst a file that nothing points to. One that is broken all the same gives way to the one before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from distill.config import DistillConfig, TrainConfig
from shards.core.errors import Refused
from shards.core.settings import FREE, UPWARD
from shards.dataset.manifest import View
from shards.storage.files import commit_bytes, list_names, read_bytes, remove, sha256_bytes

SCHEMA_VERSION = 2
MARK_NAME = re.compile(r"step-(\d{6}|[1-9]\d{6,})\.json")
MARK_KEYS = {"schema_version", "step", "sha256", "state", "identity"}


class DamagedCheckpoint(Exception):
    """A checkpoint that is not whole; there may be an older one."""


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` updates.

    Attributes:
        step: updates done.
        tensors: weights, moving averages and optimizer state by name.
        state: the stream's state and whatever else is JSON.
        identity: what the training depends on; a checkpoint of another training is refused.
    """

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to go on from, and what is wrong with newer ones, a sentence each."""

    checkpoint: Checkpoint
    broken: tuple[str, ...]


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, kept: int = 2, keep_interval: int | None = None
) -> None:
    """Commit a checkpoint, then drop the older ones, and broken ones that lie ahead of it.

    Args:
        folder: of the checkpoints.
        checkpoint: to be committed.
        kept: newest ones that stay, this one among them.
        keep_interval: those at multiples of it stay, too; None for no others.

    Raises:
        Refused, Failed: it cannot be written; the older ones are all there.
    """
    content = save({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()})
    commit_bytes(_path(folder, checkpoint.step, "safetensors"), content)
    mark = {
        "schema_version": SCHEMA_VERSION,
        "step": checkpoint.step,
        "sha256": sha256_bytes(content),
        "state": checkpoint.state,
        "identity": checkpoint.identity,
    }
    commit_bytes(
        _path(folder, checkpoint.step, "json"), (json.dumps(mark, indent=2, sort_keys=True) + "\n").encode()
    )
    steps = _steps(folder)
    # What is further on was broken, or this training would not have begun before it; it must not pass for the newest.
    ahead = [step for step in steps if step > checkpoint.step]
    older = [step for step in steps if step <= checkpoint.step][:-kept]
    dropped = [step for step in older if keep_interval is None or step % keep_interval]
    for step in (*ahead, *dropped):
        remove(_path(folder, step, "json"))
        remove(_path(folder, step, "safetensors"))


def newest_checkpoint(folder: Path, identity: Mapping[str, Any], num_steps: int) -> Resumed | None:
    """The newest checkpoint that is whole, None where there is none at all.

    Raises:
        Refused: as `refuse_other_training`, or none of those that are there is whole.
    """
    refuse_other_training(folder, identity, num_steps)
    broken: list[str] = []
    for step in reversed(_steps(folder)):
        try:
            return Resumed(load_checkpoint(folder, step), tuple(broken))
        except DamagedCheckpoint as error:
            broken.append(str(error))
    if broken:
        raise Refused(_all_broken(folder, broken))
    return None


def load_checkpoint(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, whole.

    Raises:
        DamagedCheckpoint: its mark or its tensors are damaged, or gone.
        Refused: it is of another schema.
    """
    mark = _read_mark(_path(folder, step, "json"), step)
    path = _path(folder, step, "safetensors")
    content = read_bytes(path) if path.is_file() else b""
    if sha256_bytes(content) != mark["sha256"]:
        problem = "damaged (its sha256 is not the recorded one)" if content else "missing or empty"
        raise DamagedCheckpoint(f"{path} is {problem}")
    return Checkpoint(mark["step"], load(content), mark["state"], mark["identity"])


def refuse_other_training(
    folder: Path, identity: Mapping[str, Any], num_steps: int | None = None
) -> dict[str, Any] | None:
    """Hold what a training is told against the newest checkpoint; returns that checkpoint's mark, if there is one.

    Args:
        folder: of the checkpoints.
        identity: what the training depends on, or some of it.
        num_steps: how long it is to be, where that is to be checked.

    Raises:
        Refused: the checkpoint is of another training or beyond `num_steps`, its mark is of another schema, or no
            mark can be read.
    """
    mark, broken = None, []
    for step in reversed(_steps(folder)):
        path = _path(folder, step, "json")
        try:
            mark = _read_mark(path, step)
            break
        except DamagedCheckpoint as error:
            broken.append(str(error))
    if mark is None:
        if broken:
            raise Refused(_all_broken(folder, broken))
        return None
    differing = [
        f"{key}: there {mark['identity'].get(key)!r}, asked {value!r}"
        for key, value in identity.items()
        if mark["identity"].get(key) != value
    ]
    if differing:
        raise Refused(
            f"{path} is a checkpoint of another training ({'; '.join(differing)}). "
            "Choose another output folder, or ask for the same"
        )
    if num_steps is not None and mark["step"] > num_steps:
        raise Refused(
            f"train.num_steps: asked {num_steps:,}, but {path} has {mark['step']:,} steps behind it. "
            "Choose another output folder, or ask for as many or more"
        )
    return mark


def _read_mark(path: Path, step: int) -> dict[str, Any]:
    try:
        mark = json.loads(read_bytes(path))
    except ValueError as error:
        raise DamagedCheckpoint(f"{path} is damaged") from error
    if isinstance(mark, dict) and mark.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise Refused(
            f"{path} has schema_version {mark['schema_version']}, this version reads {SCHEMA_VERSION}"
        )
    if not isinstance(mark, dict) or not mark.keys() >= MARK_KEYS or mark["step"] != step:
        raise DamagedCheckpoint(f"{path} is damaged, it is not what tokenleap wrote")
    return mark


def _all_broken(folder: Path, broken: Sequence[str]) -> str:
    return (
        f"no checkpoint in {folder} is whole: {'; '.join(broken)}. Delete that folder to begin from the start"
    )


def _path(folder: Path, step: int, suffix: str) -> Path:
    return folder / f"step-{step:06d}.{suffix}"


def _steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending; what has another name is no checkpoint."""
    found = (MARK_NAME.fullmatch(name) for name in list_names(folder, ".json"))
    return sorted(int(match[1]) for match in found if match)


def training_identity(config: DistillConfig, view: View) -> dict[str, Any]:
    """All that a training depends on besides its length."""
    # How tokens are chosen when it samples is not learned.
    student = config.student.model_dump(mode="json", exclude={"noise_weight"})
    may_change = {
        name for name, field in TrainConfig.model_fields.items() if field.json_schema_extra in (FREE, UPWARD)
    }
    train = config.train.model_dump(mode="json", exclude=may_change)
    return {**student, **train, "pairs": view.size, "fingerprint": view.spec.fingerprint}
