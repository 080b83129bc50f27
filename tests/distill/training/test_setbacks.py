"""Failures during training, a full disk and a NaN loss: the training stops and keeps its finished work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from distill.config import DistillConfig
from distill.training.checkpoint import newest_checkpoint
from distill.training.metrics import read_metrics
from distill.training.trainer import train
from shards.core.errors import Failed
from shards.dataset.manifest import Manifest
from shards.streaming.stream import PairStream

pytestmark = pytest.mark.parametrize("family", ["llamagen"], indirect=True)


def run(out: Path, teacher: Path, pairs: Path, **train_settings: object) -> None:
    settings = {
        "num_steps": 6,
        "batch_size": 24,
        "warmup_steps": 2,
        "checkpoint_interval": 2,
        "log_interval": 1,
    }
    config = DistillConfig.model_validate(
        {"student": {"timesteps": [0, 2], "split": 16}, "train": {**settings, **train_settings}}
    )
    train(config, str(teacher), pairs, out, size=96, report=lambda *_: None, should_stop=lambda: False)


@pytest.fixture(scope="module")
def uninterrupted(teacher_path: Path, pairs_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out, teacher_path, pairs_root)
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
    teacher_path: Path,
    pairs_root: Path,
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
            run(tmp_path, teacher_path, pairs_root)
    assert not full.exists()
    assert not list(tmp_path.rglob(".*"))
    assert not (tmp_path / "student.safetensors").exists()
    folder = tmp_path / "checkpoints"
    resumed = newest_checkpoint(folder, {}, 6)
    assert resumed is not None
    assert (resumed.checkpoint.step, resumed.damaged) == (2, ())
    run(tmp_path, teacher_path, pairs_root)
    assert left_behind(tmp_path) == left_behind(uninterrupted)


def test_a_nan_loss_stops_the_training_and_names_the_pairs(teacher_path: Path, pairs_root: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e38, "warmup_steps": 0, "checkpoint_interval": 1}
    stream = PairStream(pairs_root, Manifest.open(pairs_root).view(96), 24, seed=0)
    next(stream)
    index_B, _ = stream.upcoming()
    with pytest.raises(Failed) as failed:
        run(tmp_path, teacher_path, pairs_root, **settings)
    assert str(failed.value) == (f"step 2: the loss is nan and its gradient is not finite, on pairs {index_B.tolist()}")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000001.json",
        "step-000001.safetensors",
    ]
    assert read_metrics(tmp_path / "metrics")["step"].to_pylist() == [1]
    assert not (tmp_path / "student.safetensors").exists()
