"""Each kind of corruption, with both modes of noise: verification finds it, and training never reads it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from corruptions import NEVER_FED, Sound, missed_by_verify
from resealing import FOUND_ONLY, UNKNOWABLE

from shards.dataset.verify import verify


@pytest.fixture(scope="module", params=["stored", "counter"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return Sound.make(tmp_path_factory.mktemp(request.param), request.param)


def test_the_intact_data_set_is_sound(sound: Sound, tmp_path: Path) -> None:
    sound.plant(lambda copy: set(), tmp_path / "pairs", random.Random(0))
    assert verify(tmp_path / "pairs") == []
    assert sound.fed(tmp_path / "pairs") is None
    assert len(sound.batches) == 16


@pytest.mark.parametrize("kind", NEVER_FED)
def test_corruption_is_found_and_never_fed(sound: Sound, tmp_path: Path, kind: str) -> None:
    damaged = sound.plant(NEVER_FED[kind], tmp_path / "pairs", random.Random(kind))
    assert missed_by_verify(tmp_path / "pairs", damaged) is None
    assert sound.fed(tmp_path / "pairs") is None


@pytest.mark.parametrize("kind", FOUND_ONLY)
def test_corruption_inside_sealed_noise_is_found(sound: Sound, tmp_path: Path, kind: str) -> None:
    damaged = sound.plant(FOUND_ONLY[kind], tmp_path / "pairs", random.Random(kind))
    assert missed_by_verify(tmp_path / "pairs", damaged) is None


@pytest.mark.parametrize("kind", UNKNOWABLE)
def test_corruption_that_only_the_teacher_can_detect_is_not_reported(sound: Sound, tmp_path: Path, kind: str) -> None:
    sound.plant(UNKNOWABLE[kind], tmp_path / "pairs", random.Random(kind))
    assert verify(tmp_path / "pairs") == []
    assert sound.fed(tmp_path / "pairs") is not None
