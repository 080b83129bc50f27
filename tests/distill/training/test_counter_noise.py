"""Pairs without stored noise give the same student; different noise of another platform is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shards.dataset.reader
from distill.student.sampler import sample_images
from distill.student.student import Student
from generate_pairs.config import GenerateConfig
from generate_pairs.generation.generate import generate
from shards import Manifest, gaussian_noise, read_shard, verify
from shards.core.errors import Failed

SETTINGS = {"num_steps": 4, "checkpoint_interval": 2}


@pytest.fixture(scope="module")
def counter_root(
    teacher_path: Path,
    generate_config: Callable[..., GenerateConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    root = tmp_path_factory.mktemp("counter") / "pairs"
    generate(
        generate_config(teacher_path, noise="counter"), root, workers=0, report=lambda *_: None, should_stop=lambda: False
    )
    return root


def test_the_same_pairs_in_fewer_bytes(pairs_root: Path, counter_root: Path) -> None:
    stored, counted = Manifest.open(pairs_root), Manifest.open(counter_root)
    assert counted.spec.fingerprint == stored.spec.fingerprint
    for one, other in zip(stored.rows, counted.rows, strict=True):
        pairs, same = (
            read_shard(manifest.root, manifest.spec, row) for manifest, row in ((stored, one), (counted, other))
        )
        for name in ("index_B", "noise_BLC", "tokens_BL", "label_B"):
            assert np.array_equal(getattr(pairs, name), getattr(same, name))
    assert verify(counter_root) == []


def test_they_give_the_same_student(run: Any, pairs_root: Path, counter_root: Path, tmp_path: Path) -> None:
    for name, root in (("stored", pairs_root), ("counter", counter_root)):
        run(tmp_path / name, pairs=root, **SETTINGS)
    for name in ("student.safetensors", "tokenizer.safetensors", "config.json"):
        assert (tmp_path / "counter" / name).read_bytes() == (tmp_path / "stored" / name).read_bytes()
    student = Student.from_pretrained(tmp_path / "counter")
    (drawn,) = sample_images(student, np.arange(4), 0, (0,))
    assert torch.isfinite(drawn.images_BIHW).all()


@pytest.mark.parametrize("pair_index", [40, 127])
def test_different_noise_of_another_platform_is_refused(
    run: Any, counter_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair_index: int
) -> None:
    """The last bit of one float16 number differs, as with another cosine implementation."""

    def elsewhere(seed: int, first: int, count: int, shape: tuple[int, int]) -> np.ndarray:
        noise_BLC = gaussian_noise(seed, first, count, shape)
        if first <= pair_index < first + count:
            noise_BLC.view(np.uint16)[pair_index - first, -1, -1] ^= 1
        return noise_BLC

    monkeypatch.setattr(shards.dataset.reader, "gaussian_noise", elsewhere)
    with pytest.raises(Failed, match=rf"the noise of pair {pair_index} regenerated from its counter"):
        run(tmp_path / "student", pairs=counter_root, **SETTINGS)
    assert list((tmp_path / "student").rglob("*.safetensors")) == []
