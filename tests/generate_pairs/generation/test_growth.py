"""A data set of 500 shards with simulated rows: how much is read to open and to extend it."""

from __future__ import annotations

import shutil
from pathlib import Path

import growth
import pytest

import shards.dataset.manifest
from generate_pairs.generation import shard_jobs
from generate_pairs.generation.generate import generate
from generate_pairs.generation.plan import refuse_fewer_pairs
from shards.core.errors import Refused
from shards.dataset.manifest import Manifest
from shards.dataset.manifest_row import read_rows, row_path, shard_name
from shards.streaming.stream import PairStream

NUM_SHARDS = 500


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("growth") / "pairs"
    growth.simulate(root, NUM_SHARDS)
    growth.make_first_window(root)
    return root


@pytest.fixture
def root(simulated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(simulated, tmp_path / "pairs"))


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose row files are read, in order."""
    read: list[str] = []

    def counting(root, names):
        read.extend(names)
        return read_rows(root, names)

    monkeypatch.setattr(shards.dataset.manifest, "read_rows", counting)
    return read


def test_every_row_file_is_read_once_or_not_at_all_with_the_joined_table(root: Path, rows_read: list[str]) -> None:
    alone = Manifest.open(root)
    assert rows_read == [shard_name(index) for index in range(NUM_SHARDS)]
    assert alone.missing(NUM_SHARDS + 2) == (NUM_SHARDS, NUM_SHARDS + 1)
    alone.write_joined()
    rows_read.clear()
    assert Manifest.open(root).rows == alone.rows
    assert rows_read == []


def test_generate_reads_each_row_once_and_makes_what_is_missing(
    root: Path, rows_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row_path(root, shard_name(77)).unlink()
    real, generated = shard_jobs.generate_shard, []

    def generate_shard(root, spec, teacher, unit, device):
        generated.append(unit.shard_index)
        return real(root, spec, teacher, unit, device)

    monkeypatch.setattr(shard_jobs, "generate_shard", generate_shard)
    config = growth.settings(NUM_SHARDS + 1)
    refuse_fewer_pairs(config, root)
    generate(config, root, workers=0, report=lambda *_: None, should_stop=lambda: False)
    assert generated == [77, NUM_SHARDS]
    done = [shard_name(index) for index in range(NUM_SHARDS) if index != 77]
    assert rows_read[: len(done)] == done
    with pytest.raises(Refused, match=rf"already holds {NUM_SHARDS * 16} training pairs"):
        refuse_fewer_pairs(growth.settings(NUM_SHARDS), root)


def test_a_stream_starts_with_the_few_shards_of_its_first_batch(root: Path) -> None:
    batch = next(PairStream(root, Manifest.open(root).view(), growth.BATCH_SIZE, growth.SEED))
    assert len(set(batch.index_B.tolist())) == growth.BATCH_SIZE
    assert len(list((root / "shards").iterdir())) <= 16
