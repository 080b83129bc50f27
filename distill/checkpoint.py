"""The full resumable state of a training: tensors in safetensors, the rest in a JSON beside, which is the mark.

`step-000500.json` is committed after `step-000500.safetensors` and holds its sha256, so a killed writer leaves at
worst a file that nothing points to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from shards.errors import Refused
from shards.storage import commit_bytes, list_names, read_bytes, remove, sha256_bytes

SCHEMA_VERSION = 1
KEPT = 2
"""Checkpoints that stay: the newest, and one to fall back to."""


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


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint, then drop all but the newest `KEPT`."""
    stem = _stem(checkpoint.step)
    content = save({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()})
    commit_bytes(folder / f"{stem}.safetensors", content)
    mark = {
        "schema_version": SCHEMA_VERSION,
        "step": checkpoint.step,
        "sha256": sha256_bytes(content),
        "state": checkpoint.state,
        "identity": checkpoint.identity,
    }
    commit_bytes(folder / f"{stem}.json", (json.dumps(mark, indent=2, sort_keys=True) + "\n").encode())
    for old in _stems(folder)[:-KEPT]:
        remove(folder / f"{old}.json")
        remove(folder / f"{old}.safetensors")


def newest_checkpoint(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint, None where there is none.

    Raises:
        Refused: it is of another training (names what differs), damaged, or of another schema.
    """
    mark = refuse_other_training(folder, identity)
    if mark is None:
        return None
    path = folder / f"{_stem(mark['step'])}.safetensors"
    content = read_bytes(path)
    if sha256_bytes(content) != mark["sha256"]:
        raise Refused(
            f"{path} is damaged (its sha256 is not the recorded one): "
            f"delete {path.with_suffix('.json')} to go on from the checkpoint before"
        )
    return Checkpoint(mark["step"], load(content), mark["state"], mark["identity"])


def refuse_other_training(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Hold what a training is told against the newest checkpoint; returns that checkpoint's mark, if there is one.

    Raises:
        Refused: the checkpoint is of another training, its mark is damaged or of another schema.
    """
    stems = _stems(folder)
    if not stems:
        return None
    path = folder / f"{stems[-1]}.json"
    try:
        mark: dict[str, Any] = json.loads(read_bytes(path))
    except ValueError as error:
        raise Refused(f"{path} is damaged: delete it to go on from the checkpoint before") from error
    if mark.get("schema_version") != SCHEMA_VERSION:
        version = mark.get("schema_version")
        raise Refused(f"{path} has schema_version {version}, this version reads {SCHEMA_VERSION}")
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
    return mark


def _stem(step: int) -> str:
    return f"step-{step:06d}"


def _stems(folder: Path) -> list[str]:
    """Committed checkpoints, oldest first."""
    return sorted(Path(name).stem for name in list_names(folder, ".json"))
