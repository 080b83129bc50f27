"""A file is hashed once for all processes of a job, again when it has changed, and always when in doubt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import shards.streaming.hash_ledger
import shards.streaming.shard_source
from shards import Failed, Refused
from shards.dataset.manifest_row import shard_path
from shards.streaming.hash_ledger import KEPT_SECONDS, HashCache, job_folder
from shards.streaming.stream import PairStream


@pytest.fixture(autouse=True)
def temporary(monkeypatch) -> Iterator[Path]:
    """A folder for temporary files of this test's own; its name is short, as the system's limit on sockets' asks."""
    with TemporaryDirectory() as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


@pytest.fixture
def hashed(monkeypatch, tmp_path) -> Path:
    """A file that gets the name of every shard that any process hashes."""
    log, check = tmp_path / "hashed", shards.streaming.shard_source.check_digest
    log.touch()

    def logging(row, digest) -> None:
        with open(log, "a") as file:
            file.write(f"{row.shard}\n")
        check(row, digest)

    monkeypatch.setattr(shards.streaming.shard_source, "check_digest", logging)
    return log


@pytest.mark.parametrize("num_workers", [0, 3])
def test_ranks_and_workers_hash_each_shard_once(make_spec, make_dataset, hashed, num_workers) -> None:
    manifest = make_dataset(make_spec(), 6)
    for _ in range(2):
        ranks = [
            PairStream(manifest.root, manifest.view(), 8, 0, rank, 2, num_workers=num_workers)
            for rank in range(2)
        ]
        with closing(ranks[0]), closing(ranks[1]):
            list(islice(zip(*ranks, strict=False), 12))
    assert sorted(hashed.read_text().split()) == [row.shard for row in manifest.rows[1:]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_shard_that_changes_between_two_looks_is_never_fed(
    make_spec, make_dataset, hashed, world_size
) -> None:
    """A bit of a payload, which nothing but the hash can see."""
    manifest = make_dataset(make_spec(), 8)
    stream = PairStream(manifest.root, manifest.view(), 8, 0, 0, world_size, window=1)
    list(islice(stream, 7))
    for row in manifest.rows:
        path = shard_path(manifest.root, row.shard)
        data = bytearray(path.read_bytes())
        data[5 * 512] ^= 1
        path.write_bytes(data)
    with pytest.raises(Failed, match=r"its xxh3_128 is .* was committed; run `tokenleap shards repair"):
        list(islice(stream, 21))


def status(path: Path) -> os.stat_result:
    return path.stat()


def test_a_check_that_fails_is_not_noted(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")

    def wrong() -> None:
        raise Failed("wrong")

    calls = []
    for hash_cache in (HashCache(job_folder()), HashCache()):
        with pytest.raises(Failed, match="wrong"):
            hash_cache.once("file", status(path), "sha", wrong)
        assert hash_cache.once("file", status(path), "sha", lambda: calls.append("again"))
        assert not hash_cache.once("file", status(path), "sha", lambda: calls.append("once more"))
    assert calls == ["again", "again"]


@pytest.mark.parametrize("change", ["name", "size", "time", "file", "sha256"])
def test_another_state_is_checked_again(tmp_path, change) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 10**9))
    hash_cache = HashCache(job_folder())
    assert hash_cache.once("file", status(path), "sha", lambda: None)
    if change == "size":
        path.write_bytes(b"contents")
        os.utime(path, ns=(0, 10**9))
    elif change == "time":
        os.utime(path, ns=(0, 10**9 + 1))
    elif change == "file":
        path.rename(tmp_path / "other")
        path.write_bytes(b"content")
        os.utime(path, ns=(0, 10**9))
    name, sha256 = "other" if change == "name" else "file", "other" if change == "sha256" else "sha"
    assert HashCache(job_folder()).once(name, status(path), sha256, lambda: None)
    assert not HashCache(job_folder()).once(name, status(path), sha256, lambda: pytest.fail("checked"))


WHERE = "from shards.streaming.hash_ledger import job_folder; print(job_folder())"


def told(environment: dict[str, str], temporary: Path, **options) -> str:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "TORCHELASTIC"))
    } | environment
    return subprocess.run(
        [sys.executable, "-c", WHERE],
        env=environment | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=True,
        **options,
    ).stdout


def test_processes_of_one_job_share_a_folder_and_jobs_do_not(temporary) -> None:
    slurm = {"SLURM_JOB_ID": "7"}
    assert told(slurm, temporary) == told(slurm, temporary, start_new_session=True)
    assert told(slurm, temporary) != told({"SLURM_JOB_ID": "8"}, temporary)
    assert told(slurm, temporary) != told(slurm | {"SLURM_RESTART_COUNT": "1"}, temporary)
    # Ranks of torchrun have its process as their parent, and a session each.
    elastic = {"TORCHELASTIC_RUN_ID": "none"}
    assert told(elastic, temporary, start_new_session=True) == told(elastic, temporary)
    assert told({}, temporary) == told({}, temporary)
    assert told({}, temporary) != told({}, temporary, start_new_session=True)


def test_a_folder_that_others_may_write_to_vouches_for_nothing(temporary) -> None:
    folder = temporary / f"tokenleap-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(Refused, match="only you can write to"):
        job_folder()
    folder.chmod(0o700)
    assert job_folder().parent == folder


def test_notes_of_jobs_long_gone_are_taken_away(temporary) -> None:
    job = job_folder()
    old = job.parent / "slurm-1-0"
    old.mkdir()
    (old / "note").write_text("\n")
    os.utime(old, (0, old.stat().st_mtime - KEPT_SECONDS - 60))
    assert job_folder() == job
    assert not old.exists()
