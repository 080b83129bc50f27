"""Remote shards on local disk: within the limit, fetched once a host and epoch, never a broken one."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

import shards.streaming.shard_source
from shards import Failed, Refused
from shards.storage.files import sha256_bytes
from shards.streaming.download_cache import ShardCache
from shards.streaming.stream import PairStream


@dataclass(frozen=True)
class Remote:
    """A root that is no local path: counts, across processes, the bytes that are read of it."""

    path: Path
    log: Path
    protocol = "remote"

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.path / name, self.log)

    def __str__(self) -> str:
        return f"remote://{self.path}"

    def read_bytes(self) -> bytes:
        data = self.path.read_bytes()
        with open(self.log, "a") as log:
            log.write(f"{len(data)}\n")
        return data

    @property
    def bytes_read(self) -> int:
        return sum(map(int, self.log.read_text().split())) if self.log.exists() else 0


def stored_bytes(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        # Temporary files may be gone by now.
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@pytest.fixture(autouse=True)
def remote_is_read(monkeypatch) -> None:
    """`read_bytes` needs a real URL; a `Remote` reads its own file."""
    monkeypatch.setattr(shards.streaming.shard_source, "read_bytes", lambda path: path.read_bytes())


@pytest.fixture
def data_set(make_spec, make_dataset, tmp_path):
    manifest = make_dataset(make_spec(), 25)
    return manifest, Remote(manifest.root, tmp_path / "log")


@pytest.mark.parametrize(
    ("num_workers", "share"),
    [(0, 0.5), (2, 1.0), *(pytest.param(*values, marks=pytest.mark.slow) for values in ((0, 1.0), (2, 0.5)))],
)
def test_a_host_fetches_each_shard_about_once_an_epoch(make_spec, make_dataset, tmp_path, num_workers, share) -> None:
    """Two ranks, with and without workers; the cache holds all of the data set, or half of it."""
    # What is read ahead is a small part of a window, as it is in earnest.
    manifest = make_dataset(make_spec(pairs_per_shard=64, num_heldout=64), 25)
    root = Remote(manifest.root, tmp_path / "log")
    view, size = manifest.view(), sum(row.num_bytes for row in manifest.rows[1:])
    ranks = [
        PairStream(
            root,
            view,
            16,
            seed=0,
            rank=rank,
            world_size=2,
            window=3,
            num_workers=num_workers,
            cache_dir=tmp_path / "cache",
            cache_bytes=int(share * size),
        )
        for rank in range(2)
    ]
    local = PairStream(manifest.root, view, 16, seed=0, window=3)
    epochs = 3
    with closing(ranks[0]), closing(ranks[1]):
        for batches in islice(zip(*ranks, local, strict=False), epochs * view.size // 16):
            found = [index for batch in batches[:2] for index in batch.index_B.tolist()]
            assert found == batches[2].index_B.tolist()
            assert stored_bytes(tmp_path / "cache") <= share * size
    assert root.bytes_read <= (1.2 * epochs if share < 1 else 1) * size
    assert root.bytes_read >= size


def test_the_least_recently_used_goes_first(tmp_path) -> None:
    cache = ShardCache(tmp_path, 30)
    contents = {sha256_bytes(data): data for data in (b"a" * 10, b"b" * 10, b"c" * 10, b"d" * 10)}
    names = list(contents)

    def use(name: str) -> None:
        with cache.open(name, lambda: contents[name]) as file:
            assert file.read() == contents[name]

    for name in (*names[:3], names[0], names[3]):
        use(name)
    assert {path.stem for path in tmp_path.glob("*.tar")} == {names[0], names[2], names[3]}


def test_what_is_open_is_read_to_its_end(tmp_path) -> None:
    cache = ShardCache(tmp_path, 10)
    one, other = b"a" * 10, b"b" * 10
    with cache.open(sha256_bytes(one), lambda: one) as file:
        cache.open(sha256_bytes(other), lambda: other).close()
        assert file.read() == one
    assert stored_bytes(tmp_path) == 10


def test_other_bytes_than_were_committed_get_no_name(data_set, tmp_path) -> None:
    manifest, root = data_set
    path = manifest.root / "shards" / "pairs-000003.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    stream = PairStream(root, manifest.view(), 8, seed=0, cache_dir=tmp_path / "cache")
    with pytest.raises(Failed, match=r"remote://.*pairs-000003\.tar: its sha256 is .*repair remote://"):
        list(islice(stream, 24))
    assert manifest.rows[3].sha256 not in {file.stem for file in (tmp_path / "cache").iterdir()}


def test_a_copy_that_the_disk_damaged_is_fetched_again(data_set, tmp_path) -> None:
    manifest, root = data_set
    view = manifest.view()
    list(islice(PairStream(root, view, 8, seed=0, cache_dir=tmp_path / "cache"), 24))
    before = root.bytes_read
    copy = tmp_path / "cache" / f"{manifest.rows[3].sha256}.tar"
    data = bytearray(copy.read_bytes())
    data[700] ^= 1
    copy.write_bytes(data)
    again = list(islice(PairStream(root, view, 8, seed=0, cache_dir=tmp_path / "cache"), 24))
    local = list(islice(PairStream(manifest.root, view, 8, seed=0), 24))
    assert [b.noise_BLC.tolist() for b in again] == [b.noise_BLC.tolist() for b in local]
    assert root.bytes_read == before + manifest.rows[3].num_bytes


def test_a_cache_smaller_than_two_windows_is_refused(data_set, tmp_path) -> None:
    manifest, root = data_set
    needed = 6 * manifest.rows[1].num_bytes
    arguments = {"batch_size": 8, "seed": 0, "window": 3, "cache_dir": tmp_path / "cache"}
    PairStream(root, manifest.view(), cache_bytes=needed, **arguments)
    with pytest.raises(Refused, match=f"two windows of 3 shards take {needed}"):
        PairStream(root, manifest.view(), cache_bytes=needed - 1, **arguments)
    PairStream(manifest.root, manifest.view(), cache_bytes=0, **arguments | {"cache_dir": None})


def test_a_folder_that_cannot_be_written_to_is_refused(data_set, tmp_path) -> None:
    manifest, root = data_set
    (tmp_path / "file").write_text("here already")
    with pytest.raises(Refused, match="cannot lock"):
        PairStream(root, manifest.view(), 8, seed=0, cache_dir=tmp_path / "file")


def test_a_file_that_cannot_be_read_is_refused(tmp_path) -> None:
    (tmp_path / f"{'0' * 64}.tar").symlink_to(f"{'0' * 64}.tar")
    with pytest.raises(Refused, match=r"cannot read .*; choose another cache_dir"):
        ShardCache(tmp_path, 10).open("0" * 64, lambda: b"")


FETCH = """
import os, sys, time
from pathlib import Path
from shards.streaming.download_cache import ShardCache
from shards.storage.files import sha256_bytes
data = b"x" * 1000
def fetch():
    os.write(1, b"f")
    if sys.argv[2] == "hang":
        time.sleep(60)
    time.sleep(0.3)
    return data
with ShardCache(Path(sys.argv[1]), 5000).open(sha256_bytes(data), fetch) as file:
    assert file.read() == data
"""


def start(folder: Path, mode: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", FETCH, str(folder), mode], stdout=subprocess.PIPE)


def test_one_process_fetches_and_the_others_wait(tmp_path) -> None:
    processes = [start(tmp_path, "work") for _ in range(3)]
    said = b"".join(process.communicate()[0] for process in processes)
    assert (said, [process.returncode for process in processes]) == (b"f", [0, 0, 0])


def test_a_killed_download_does_not_block_other_processes(tmp_path) -> None:
    hanging = start(tmp_path, "hang")
    assert os.read(hanging.stdout.fileno(), 1) == b"f"
    waiting = start(tmp_path, "work")
    hanging.kill()
    hanging.communicate()
    assert waiting.communicate()[0] == b"f"
    assert waiting.returncode == 0
