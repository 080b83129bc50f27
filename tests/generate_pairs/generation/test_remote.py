"""Stage one on an S3 server: the same bytes as in a folder; resuming, repairing and joining work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from generate_pairs.config import GenerateConfig
from generate_pairs.generation.generate import generate
from generate_pairs.generation.repair import repair
from shards.core.errors import Failed, Stopped
from shards.dataset.manifest import Manifest
from shards.dataset.manifest_row import read_joined
from shards.dataset.verify import verify
from shards.storage.files import list_names, read_bytes, remove
from shards.storage.paths import Location, location

pytestmark = pytest.mark.parametrize("family", ["llamagen"], indirect=True)

Configs = Callable[..., GenerateConfig]


def make(config: GenerateConfig, root: Location, workers: int = 0, stop: bool = False) -> int:
    """Generate; returns the number of shards made."""

    def should_stop() -> bool:
        return stop and len(Manifest.open(root).rows) > 0

    return generate(config, root, workers=workers, report=lambda *_: None, should_stop=should_stop).num_shards


def tars(root: Location) -> dict[str, bytes]:
    return {name: read_bytes(root / "shards" / name) for name in list_names(root / "shards", ".tar")}


@pytest.fixture
def root(bucket: str) -> Location:
    return location(f"{bucket}/a folder/pairs")


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_the_bytes_are_those_of_a_folder(
    root: Location, pairs_root: Path, teacher_path: Path, generate_config: Configs, workers: int
) -> None:
    assert make(generate_config(teacher_path), root, workers) == 4
    assert tars(root) == tars(pairs_root)
    assert verify(root) == []
    assert tuple(read_joined(root).values()) == Manifest.open(root).rows
    assert make(generate_config(teacher_path), root, workers) == 0


def test_a_stopped_generation_resumes_and_joins_the_complete_table(
    root: Location, pairs_root: Path, teacher_path: Path, generate_config: Configs
) -> None:
    with pytest.raises(Stopped):
        make(generate_config(teacher_path), root, stop=True)
    assert len(Manifest.open(root).rows) == 1
    assert read_joined(root) == {}
    assert make(generate_config(teacher_path, num_pairs=32), root) == 1
    assert len(read_joined(root)) == 2
    assert make(generate_config(teacher_path), root) == 2
    assert len(read_joined(root)) == 4
    assert tars(root) == tars(pairs_root)


@pytest.mark.parametrize("lost", ["shards/pairs-000001.tar", "manifest/pairs-000001.parquet"])
def test_a_deleted_object_is_detected_and_regenerated(
    root: Location, pairs_root: Path, teacher_path: Path, generate_config: Configs, lost: str
) -> None:
    make(generate_config(teacher_path), root)
    assert remove(root / lost)
    assert {finding.kind for finding in verify(root)} & {"broken", "missing"}
    summary = repair(root, str(teacher_path), workers=0, report=lambda *_: None, should_stop=lambda: False)
    assert summary.num_shards == 1
    assert tars(root) == tars(pairs_root)
    assert verify(root) == []
    assert len(read_joined(root)) == 4


def test_a_broken_upload_ends_the_work_and_the_same_call_completes_it(
    root: Location, pairs_root: Path, teacher_path: Path, generate_config: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    system = fsspec.filesystem("s3", **root.storage_options)
    pipe_file, uploads = system.pipe_file, []

    def truncated(name: str, data: bytes) -> None:
        uploads.append(name)
        pipe_file(name, data[: len(data) // 2] if len(uploads) == 4 else data)

    with monkeypatch.context() as patch:
        patch.setattr(system, "pipe_file", truncated)
        with pytest.raises(Failed, match=r"differs from the data.* 1 of 4 missing shards .* are made and kept"):
            make(generate_config(teacher_path), root)
    assert list(tars(root)) == ["pairs-000000.tar"]
    assert make(generate_config(teacher_path), root) == 3
    assert tars(root) == tars(pairs_root)
    assert verify(root) == []
