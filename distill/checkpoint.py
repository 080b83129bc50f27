"""The full resumable state of a training: tensors in safetensors, the rest in a JSON beside, which is the mark.

`step-000500.json` is committed after `step-000500.safetensors` and holds its sha256, so a killed writer leaves at
worst a file that nothing points to.
"""

from __future__ import annotations

import json
import re
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
MARK_NAME = re.compile(r"step-(\d{6}|[1-9]\d{6,})\.json")
MARK_KEYS = {"schema_version", "step", "sha256", "state", "identity"}


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
    for old in _steps(folder)[:-KEPT]:
        remove(_path(folder, old, "json"))
        remove(_path(folder, old, "safetensors"))


def newest_checkpoint(folder: Path, identity: Mapping[str, Any], num_steps: int) -> Checkpoint | None:
    """The newest checkpoint, None where there is none.

    Raises:
        Refused: as `refuse_other_training`, or its tensors are damaged or gone.
    """
    mark = refuse_other_training(folder, identity, num_steps)
    if mark is None:
        return None
    path = _path(folder, mark["step"], "safetensors")
    content = read_bytes(path) if path.is_file() else b""
    if sha256_bytes(content) != mark["sha256"]:
        problem = "damaged (its sha256 is not the recorded one)" if content else "missing or empty"
        raise Refused(f"{path} is {problem}: {_way_out(path.with_suffix('.json'))}")
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
        Refused: the checkpoint is of another training or beyond `num_steps`, its mark is damaged or of another
            schema.
    """
    steps = _steps(folder)
    if not steps:
        return None
    path = _path(folder, steps[-1], "json")
    mark = _read_mark(path, steps[-1])
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
        raise Refused(f"{path} is damaged: {_way_out(path)}") from error
    if isinstance(mark, dict) and mark.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise Refused(
            f"{path} has schema_version {mark['schema_version']}, this version reads {SCHEMA_VERSION}"
        )
    if not isinstance(mark, dict) or not mark.keys() >= MARK_KEYS or mark["step"] != step:
        raise Refused(f"{path} is damaged, it is not what onestep wrote: {_way_out(path)}")
    return mark


def _way_out(mark: Path) -> str:
    return f"delete {mark} to go on from the checkpoint before, or from the start where there is none"


def _path(folder: Path, step: int, suffix: str) -> Path:
    return folder / f"step-{step:06d}.{suffix}"


def _steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending; what has another name is no checkpoint."""
    found = (MARK_NAME.fullmatch(name) for name in list_names(folder, ".json"))
    return sorted(int(match[1]) for match in found if match)
