"""Files written under the project's first name, `onestep`, are still readable, and new files have the same bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from distill import Student
from generate_pairs.config import GenerateConfig
from generate_pairs.generation.generate import generate
from generate_pairs.teachers.checkpoints import load_teacher
from pipeline.run_folder.results import PairStatistics
from shards import Manifest, verify

STORED = Path(__file__).parent / "stored" / "first_name.zip"
"""A teacher, 32 of its pairs and a student trained on them for three steps, written by version 0.1.0 as `onestep`."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    zipfile.ZipFile(STORED).extractall(folder)
    return folder


def test_a_data_set_is_sound_and_its_rows_keep_their_versions(stored: Path) -> None:
    assert list(verify(stored / "pairs", workers=0)) == []
    manifest = Manifest.open(stored / "pairs")
    assert {row.versions.split()[0] for row in manifest.rows} == {"onestep"}
    assert PairStatistics.of(manifest).num_training == 16


def test_an_imported_teacher_is_found_by_its_name(stored: Path, home: Path) -> None:
    (home / "teachers").mkdir(parents=True)
    (home / "teachers" / "small.safetensors").write_bytes((stored / "small.safetensors").read_bytes())
    loaded = load_teacher("small")
    assert loaded.sha256 == Manifest.open(stored / "pairs").spec.lineage["teacher"]["sha256"]


def test_its_pairs_can_be_generated_again_byte_for_byte(stored: Path, tmp_path: Path) -> None:
    config = GenerateConfig.model_validate(
        {
            "teacher": {"name": str(stored / "small.safetensors"), "guidance_scale": 1.5},
            "pairs": {
                "num_pairs": 16,
                "num_heldout": 16,
                "pairs_per_shard": 16,
                "batch_size": 16,
                "seed": 3,
                "solver_steps": 16,
            },
        }
    )
    generate(config, tmp_path, workers=0, report=lambda *_: None, should_stop=lambda: False)
    for name in ("pairs-000000.tar", "pairs-000001.tar"):
        generated, original = (root / "shards" / name for root in (tmp_path, stored / "pairs"))
        assert generated.read_bytes() == original.read_bytes()
    assert {row.versions.split()[0] for row in Manifest.open(tmp_path).rows} == {"tokenleap"}


def test_an_export_can_be_sampled(stored: Path) -> None:
    student = Student.from_pretrained(stored / "student")
    images = student.sample([3, 7], steps=2)
    assert images.shape == (2, 1, 8, 8)
    assert torch.equal(images, student.sample([3, 7], steps=2))
