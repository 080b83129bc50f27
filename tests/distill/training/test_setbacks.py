"""Failures during training, a full disk and a NaN loss: the training stops and keeps its finished work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from distill.training.checkpoint import newest_checkpoint
from distill.training.metrics import read_metrics
from shards.core.errors import Failed
from shards.dataset.manifest import Manifest
from shards.streaming.stream import PairStream

pytestmark = pytest.mark.parametrize("family", ["llamagen"], indirect=True)

SETTINGS = {"num_steps": 6, "checkpoint_interval": 2}


@pytest.fixture(scope="module")
def uninterrupted(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out, **SETTINGS)
    return out


@pytest.mark.parametrize(
    "name",
    [
        "samples/step-000004.png",
        "metrics/steps-000002-000004.parquet",
        "checkpoints/step-000004.safetensors",
        "checkpoints/step-000004.json",
    ],
)
def test_with_a_full_disk_it_stops_and_resumes_from_the_last_intact_checkpoint(
    run: Any,
    uninterrupted: Path,
    left_behind: Callable[[Path], Mapping[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    full, real = tmp_path / name, os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target) == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Failed, match=f"no space left.*{full.name}|{full.name}.*no space left"):
            run(tmp_path, **SETTINGS)
    assert not full.exists()
    assert not list(tmp_path.rglob(".*"))
    assert not (tmp_path / "student.safetensors").exists()
    folder = tmp_path / "checkpoints"
    checkpoint, damaged = newest_checkpoint(folder, {}, 6)
    assert (checkpoint.step, damaged) == (2, ())
    run(tmp_path, **SETTINGS)
    assert left_behind(tmp_path) == left_behind(uninterrupted)


def test_a_nan_loss_stops_the_training_and_names_the_pairs(run: Any, pairs_root: Path, tmp_path: Path) -> None:
    stream = PairStream(pairs_root, Manifest.open(pairs_root).view(96), 24, seed=0)
    next(stream)
    index_B, _ = stream.upcoming()
    with pytest.raises(Failed) as failed:
        run(tmp_path, learning_rate=1e38, warmup_steps=0, checkpoint_interval=1)
    assert str(failed.value) == (f"step 2: the loss is nan and its gradient is not finite, on pairs {index_B.tolist()}")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000001.json",
        "step-000001.safetensors",
    ]
    assert read_metrics(tmp_path / "metrics")["step"].to_pylist() == [1]
    assert not (tmp_path / "student.safetensors").exists()
