"""Repair and extension from the recorded settings: the same bytes, or a report of the differences."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from generate_pairs.config import GenerateConfig
from generate_pairs.generation import worker
from generate_pairs.generation.generate import generate
from generate_pairs.generation.repair import extend, repair
from shards import gaussian_noise, verify
from shards.core.errors import Refused
from shards.dataset import reader
from shards.dataset.manifest import Manifest

pytestmark = pytest.mark.parametrize("family", ["llamagen"], indirect=True)

Configs = Callable[..., GenerateConfig]
QUIETLY = {"workers": 0, "report": lambda *_: None, "should_stop": lambda: False}


@pytest.fixture
def root(pairs_root: Path, tmp_path: Path) -> Path:
    """A data set of four shards, to be damaged."""
    return Path(shutil.copytree(pairs_root, tmp_path / "pairs"))


def files(root: Path) -> dict[str, bytes]:
    """All files except the workers' logs."""
    paths = [path for path in root.rglob("*.*") if path.is_file() and path.suffix != ".log"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def break_shard(root: Path, index: int) -> None:
    path = root / "shards" / f"pairs-00000{index}.tar"
    data = path.read_bytes()
    path.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])


def test_without_dataset_json_nothing_is_repaired(root: Path) -> None:
    path = root / "dataset.json"
    path.write_bytes(path.read_bytes()[:-20])
    before = files(root)
    with pytest.raises(Refused, match=r"without it nothing can be repaired: restore dataset\.json"):
        repair(root, None, **QUIETLY)
    assert files(root) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_repair_proves_every_shard_that_has_a_row(root: Path, teacher_path: Path, workers: int) -> None:
    before = files(root)
    for index in (0, 2):
        break_shard(root, index)
    (root / "shards" / "pairs-000003.tar").unlink()
    made = repair(root, str(teacher_path), **QUIETLY | {"workers": workers})
    assert [(one.row.first_pair, one.is_equal) for one in made.replaced] == [(0, True), (64, True), (96, True)]
    assert files(root) == before


def test_repair_restores_a_lost_row_from_the_joined_table(root: Path, teacher_path: Path) -> None:
    before = files(root)
    Manifest.open(root).write_joined()
    (root / "manifest" / "pairs-000001.parquet").unlink()
    (root / "manifest" / "pairs-000002.parquet").write_bytes(b"damaged")
    made = repair(root, str(teacher_path), **QUIETLY)
    assert [one.is_equal for one in made.replaced] == [True, True]
    assert files(root) == before


def test_repair_compares_with_an_old_shard_without_a_row(root: Path, teacher_path: Path) -> None:
    (root / "manifest" / "pairs-000001.parquet").unlink()
    (root / "manifest.parquet").unlink()
    made = repair(root, str(teacher_path), **QUIETLY)
    (replaced,) = made.replaced
    assert (replaced.is_equal, replaced.num_compared, replaced.num_differing) == (False, 32 * 16, 0)
    assert verify(root) == []


def test_repair_on_another_platform_reports_how_many_tokens_differ(
    root: Path, teacher_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other platform's teacher changes one token in three pairs of each batch."""
    before = files(root)
    real = worker.generate_tokens

    def generate_tokens(teacher, labels_B, settings, choose):
        tokens_BL = real(teacher, labels_B, settings, choose).clone()
        tokens_BL[[1, 4, 9], 7] ^= 1
        return tokens_BL

    break_shard(root, 1)
    monkeypatch.setattr(worker, "generate_tokens", generate_tokens)
    (replaced,) = repair(root, str(teacher_path), **QUIETLY).replaced
    # Three tokens in each of two batches.
    assert (replaced.is_equal, replaced.num_compared, replaced.num_differing) == (False, 32 * 16, 6)
    assert verify(root) == []
    changed = {name for name, data in files(root).items() if data != before[name]}
    assert changed == {"shards/pairs-000001.tar", "manifest/pairs-000001.parquet", "manifest.parquet"}


def test_noise_of_another_platform_is_detected_and_repaired(
    teacher_path: Path, generate_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other platform's logarithm changes the last bit of one float16 number of pair 40."""
    root = tmp_path / "pairs"
    generate(generate_config(teacher_path, num_pairs=64, noise="counter"), root, **QUIETLY)
    before = files(root)

    def other_noise(seed, first, count, shape):
        noise_BLC = gaussian_noise(seed, first, count, shape)
        if first <= 40 < first + count:
            noise_BLC.view(np.uint16)[40 - first, 3, 0] ^= 1
        return noise_BLC

    for module in (reader, worker):
        monkeypatch.setattr(module, "gaussian_noise", other_noise)
    (finding,) = verify(root)
    assert "the noise of pair 40 regenerated from its counter does not match the checksum" in finding.message
    (replaced,) = repair(root, str(teacher_path), **QUIETLY).replaced
    assert (replaced.row.shard, replaced.is_equal, replaced.num_compared) == ("pairs-000001", False, 32 * 16)
    assert replaced.num_differing <= 16
    assert verify(root) == []
    monkeypatch.undo()
    assert [finding.kind for finding in verify(root)] == ["broken"]
    assert files(root)["shards/pairs-000000.tar"] == before["shards/pairs-000000.tar"]


@pytest.mark.parametrize("noise", [pytest.param("stored", marks=pytest.mark.slow), "counter"])
def test_an_extended_data_set_equals_one_generated_at_once(
    teacher_path: Path, generate_config: Configs, tmp_path: Path, noise: str
) -> None:
    moved = Path(shutil.copy(teacher_path, tmp_path / "moved.safetensors"))
    for folder, num_pairs in (("small", 32), ("large", 96)):
        config = generate_config(teacher_path, num_pairs=num_pairs, noise=noise, batch_size=8)
        generate(config, tmp_path / folder, **QUIETLY)
    made = extend(tmp_path / "small", 70, str(moved), **QUIETLY)
    assert made.num_shards == 2
    large, extended = (
        {name: data for name, data in files(tmp_path / folder).items() if "manifest" not in name}
        for folder in ("large", "small")
    )
    assert extended == large
    assert [row.batch_size for row in Manifest.open(tmp_path / "small").rows] == [8] * 4
    assert extend(tmp_path / "small", 96, str(moved), **QUIETLY).num_shards == 0
    with pytest.raises(Refused, match="already holds 96 training pairs"):
        extend(tmp_path / "small", 64, str(moved), **QUIETLY)


def test_extension_needs_the_teacher_that_made_the_pairs(root: Path) -> None:
    path = Manifest.open(root).spec.lineage["teacher"]["name"]
    with pytest.raises(Refused, match=rf"{path}.* `tokenleap shards extend .* --teacher FILE`"):
        extend(root, 200, **QUIETLY)
