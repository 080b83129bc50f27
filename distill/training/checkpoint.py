"""Checkpoints with the full state of a training: tensors in a safetensors file, the rest in a JSON file.

`step-000500.json` is the commit mark: it is written after `step-000500.safetensors` and contains its sha256. A killed
writer leaves at worst an unused file. If a committed checkpoint is damaged, the one before it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load, save
from torch import Tensor

from distill.config import DistillConfig, TrainConfig
from shards.core.errors import Refused, join_first
from shards.core.mismatch import format_mismatch, mismatches
from shards.core.settings import FREE, UPWARD
from shards.dataset.manifest import View
from shards.storage.files import commit_bytes, list_names, read_bytes, remove, sha256_bytes

SCHEMA_VERSION = 2
MARK_NAME = re.compile(r"step-(\d{6}|[1-9]\d{6,})\.json")
_T = TypeVar("_T")
MARK_KEYS = {"schema_version", "step", "sha256", "state", "identity"}


class DamagedCheckpoint(Exception):
    """A checkpoint is incomplete or damaged; an older one may be intact."""


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` updates: weights, moving averages and optimizer state by name, and other JSON values.

    `identity` is everything that the training depends on; a checkpoint with another identity is refused.
    """

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    identity: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, kept: int = 2, keep_interval: int | None = None) -> None:
    """Commit a checkpoint, then delete damaged newer ones, and older ones.

    The `kept` newest stay, and those at multiples of `keep_interval`; None for no others.

    Raises:
        Refused, Failed: It cannot be written; the older checkpoints are unchanged.
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
    commit_bytes(_path(folder, checkpoint.step, "json"), (json.dumps(mark, indent=2, sort_keys=True) + "\n").encode())
    steps = _steps(folder)
    # Newer checkpoints are damaged, or this training would have resumed from them. They must not be taken as the newest.
    newer = [step for step in steps if step > checkpoint.step]
    older = [step for step in steps if step <= checkpoint.step][:-kept]
    expired = [step for step in older if keep_interval is None or step % keep_interval]
    for step in (*newer, *expired):
        remove(_path(folder, step, "json"))
        remove(_path(folder, step, "safetensors"))


def newest_checkpoint(
    folder: Path, identity: Mapping[str, Any], num_steps: int
) -> tuple[Checkpoint, tuple[str, ...]] | None:
    """Load the newest intact checkpoint, with a message for each damaged newer one; None if there are no checkpoints.

    Raises:
        Refused: As `refuse_other_training`, or all checkpoints are damaged.
    """
    refuse_other_training(folder, identity, num_steps)
    return _newest(folder, load_checkpoint)


def load_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Load and verify the checkpoint of a step.

    Raises:
        DamagedCheckpoint: Its mark or its tensors are damaged or missing.
        Refused: It has another schema version.
    """
    mark = _read_mark(folder, step)
    path = _path(folder, step, "safetensors")
    content = read_bytes(path) if path.is_file() else b""
    if sha256_bytes(content) != mark["sha256"]:
        problem = "damaged (its sha256 is not the recorded one)" if content else "missing or empty"
        raise DamagedCheckpoint(f"{path} is {problem}")
    return Checkpoint(mark["step"], load(content), mark["state"], mark["identity"])


def refuse_other_training(
    folder: Path, identity: Mapping[str, Any], num_steps: int | None = None
) -> dict[str, Any] | None:
    """Check a training against the newest checkpoint; returns that checkpoint's mark, or None without checkpoints.

    `identity` may be a part of the training's; None as `num_steps`, the length of the training, skips its check.

    Raises:
        Refused: The checkpoint belongs to another training or has more than `num_steps` steps, its mark has another
            schema version, or all marks are damaged.
    """
    newest = _newest(folder, _read_mark)
    if newest is None:
        return None
    mark, _ = newest
    path = _path(folder, mark["step"], "json")
    differing = mismatches({key: mark["identity"].get(key) for key in identity}, identity)
    if differing:
        raise Refused(
            f"{path} is a checkpoint of another training ({join_first([*map(format_mismatch, differing)])}). "
            "Choose another output folder, or use the settings of the checkpoint"
        )
    if num_steps is not None and mark["step"] > num_steps:
        raise Refused(
            f"train.num_steps is {num_steps:,}, but {path} already has {mark['step']:,} steps. "
            "Choose another output folder, or set it to at least as many"
        )
    return mark


def _newest(folder: Path, read: Callable[[Path, int], _T]) -> tuple[_T, tuple[str, ...]] | None:
    """Read the newest intact checkpoint; returns it and a message for each damaged newer one."""
    damaged: list[str] = []
    for step in reversed(_steps(folder)):
        try:
            return read(folder, step), tuple(damaged)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
    if damaged:
        raise Refused(f"all checkpoints in {folder} are damaged: {'; '.join(damaged)}. Delete that folder to start again")
    return None


def _read_mark(folder: Path, step: int) -> dict[str, Any]:
    path = _path(folder, step, "json")
    try:
        mark = json.loads(read_bytes(path))
    except ValueError as error:
        raise DamagedCheckpoint(f"{path} is damaged") from error
    if isinstance(mark, dict) and mark.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise Refused(f"{path} has schema_version {mark['schema_version']}, this version reads {SCHEMA_VERSION}")
    if not isinstance(mark, dict) or not mark.keys() >= MARK_KEYS or mark["step"] != step:
        raise DamagedCheckpoint(f"{path} is damaged, it is not what tokenleap wrote")
    return mark


def _path(folder: Path, step: int, suffix: str) -> Path:
    return folder / f"step-{step:06d}.{suffix}"


def _steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending; files with other names are ignored."""
    matches = (MARK_NAME.fullmatch(name) for name in list_names(folder, ".json"))
    return sorted(int(match[1]) for match in matches if match)


def training_identity(config: DistillConfig, view: View) -> dict[str, Any]:
    """Everything that a training depends on, except its length."""
    # The noise weight affects only sampling.
    student = config.student.model_dump(mode="json", exclude={"noise_weight"})
    may_change = {name for name, field in TrainConfig.model_fields.items() if field.json_schema_extra in (FREE, UPWARD)}
    train = config.train.model_dump(mode="json", exclude=may_change)
    return {**student, **train, "pairs": view.size, "fingerprint": view.spec.fingerprint}
