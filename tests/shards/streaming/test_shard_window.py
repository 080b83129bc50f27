"""Memory-mapped shards: hashed once a process, and no change of a file is missed."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import shards.streaming.shard_window
from shards import Failed
from shards.dataset.manifest_row import shard_path
from shards.streaming.shard_source import ShardSource
from shards.streaming.shard_window import ShardWindow
from shards.streaming.stream import PairStream

pytestmark = pytest.mark.quick


@pytest.fixture
def manifest(make_spec, make_dataset):
    return make_dataset(make_spec(), 4)


@pytest.fixture
def window(manifest) -> ShardWindow:
    """Two of the three training shards at a time; pairs 8 to 31, 8 a shard."""
    return ShardWindow(ShardSource(manifest.root, None), manifest.view(), 2)


@pytest.fixture
def hashed(monkeypatch, tmp_path) -> Path:
    """A file that gets the name of every shard that any process hashes."""
    log, check = tmp_path / "hashed", shards.streaming.shard_window.check_digest
    log.touch()

    def logging(row, data) -> None:
        with open(log, "a") as file:
            file.write(f"{row.shard}\n")
        check(row, data)

    monkeypatch.setattr(shards.streaming.shard_window, "check_digest", logging)
    return log


def path_of(manifest, number: int) -> Path:
    return shard_path(manifest.root, manifest.rows[number].shard)


def flip_a_bit(path: Path, offset: int = 5 * 512) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("noise", ["stored", "counter"])
def test_pairs_come_in_the_given_order(make_spec, make_dataset, make_pairs, noise) -> None:
    manifest = make_dataset(make_spec(noise=noise), 4)
    window = ShardWindow(ShardSource(manifest.root, None), manifest.view(), 2)
    index_B = np.array([23, 9, 16, 8, 9])
    pairs = window.gather(index_B)
    assert pairs.index_B.tolist() == index_B.tolist()
    for place, index in enumerate(index_B.tolist()):
        expected = make_pairs(manifest.spec, index // 8).take(np.array([index % 8]))
        assert np.array_equal(pairs.noise_BLC[place], expected.noise_BLC[0])
        assert pairs.tokens_BL[place].tolist() == expected.tokens_BL[0].tolist()
        assert pairs.label_B[place] == expected.label_B[0]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_each_process_hashes_a_shard_once(manifest, hashed, num_workers) -> None:
    with closing(PairStream(manifest.root, manifest.view(), 8, 0, num_workers=num_workers)) as stream:
        list(islice(stream, 30))
    names = hashed.read_text().split()
    assert set(names) == {row.shard for row in manifest.rows[1:]}
    assert all(names.count(name) <= max(1, num_workers) for name in set(names))


def test_a_shard_that_returns_to_the_window_is_not_hashed_again(manifest, window, hashed) -> None:
    for number in (1, 2, 3, 1, 2, 3):
        window.gather(np.array([8 * number]))
    assert hashed.read_text().split() == [manifest.rows[number].shard for number in (1, 2, 3)]


@pytest.mark.parametrize("others", [0, 2])
def test_a_payload_that_changes_between_two_batches_is_found(manifest, window, others) -> None:
    """One bit that nothing but the hash detects, in a shard that is still mapped or was closed since."""
    window.gather(np.array([8]))
    for number in (2, 3)[:others]:
        window.gather(np.array([8 * number]))
    flip_a_bit(path_of(manifest, 1))
    with pytest.raises(Failed, match=r"its xxh3_128 is .*, but .* was committed; run `tokenleap shards repair"):
        window.gather(np.array([8]))


@pytest.mark.parametrize("size", [0, 4096, None])
def test_a_file_that_shrinks_or_grows_is_found(manifest, window, size) -> None:
    window.gather(np.array([8]))
    path = path_of(manifest, 1)
    data = path.read_bytes()
    path.write_bytes(data + b"x" if size is None else data[:size])
    with pytest.raises(Failed, match=rf"it has \d+ bytes, but {len(data)} were committed"):
        window.gather(np.array([8]))


def test_a_file_that_is_written_to_during_a_batch_is_found(manifest, window, monkeypatch) -> None:
    window.gather(np.array([8, 16]))
    shard, loaded = window._shard, []

    def load(number: int):
        loaded.append(shard(number))
        if len(loaded) == 2:
            os.utime(path_of(manifest, 1), ns=(0, 0))
        return loaded[-1]

    monkeypatch.setattr(window, "_shard", load)
    with pytest.raises(Failed, match="written to while it was read; run the same command again"):
        window.gather(np.array([8, 16]))


def test_a_file_that_is_written_to_while_it_is_hashed_is_found(manifest, window, monkeypatch) -> None:
    check = shards.streaming.shard_window.check_digest

    def hash_slowly(row, data) -> None:
        check(row, data)
        os.utime(path_of(manifest, 1), ns=(0, 0))

    monkeypatch.setattr(shards.streaming.shard_window, "check_digest", hash_slowly)
    with pytest.raises(Failed, match="written to while it was read"):
        window.gather(np.array([8]))
    monkeypatch.undo()
    assert window.gather(np.array([8])).label_B.tolist() == [8]


def test_a_file_that_is_replaced_or_removed_stays_readable(manifest, window) -> None:
    before = window.gather(np.array([8, 16]))
    other = manifest.root / "other"
    other.write_bytes(b"x" * 100)
    os.replace(other, path_of(manifest, 1))
    path_of(manifest, 2).unlink()
    after = window.gather(np.array([8, 16]))
    assert np.array_equal(before.noise_BLC, after.noise_BLC)
    assert np.array_equal(before.tokens_BL, after.tokens_BL)


def test_a_file_system_that_cannot_map_is_named(window, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(Failed, match="cannot be mapped into memory: No such device; copy the data set"):
        window.gather(np.array([8]))


def test_no_more_files_stay_open_than_the_window_holds(manifest) -> None:
    def open_files() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        links = [
            os.readlink(f"/proc/self/fd/{name}")
            for name in os.listdir("/proc/self/fd")
            if name.isdigit() and os.path.exists(f"/proc/self/fd/{name}")
        ]
        return sum(str(manifest.root) in link for link in links), maps.count(str(manifest.root))

    window = ShardWindow(ShardSource(manifest.root, None), manifest.view(), 2)
    for number in (1, 2, 3, 1):
        window.gather(np.array([8 * number]))
    # A descriptor of ours and one of the mapping, for each of two shards.
    assert open_files() == (4, 2)
    del window
    assert open_files() == (0, 0)
