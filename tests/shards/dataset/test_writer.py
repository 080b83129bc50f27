"""A shard's bytes and their commit: once, atomically, by one of several writers, with kills at every moment."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

import shards.dataset.writer
from shards import Failed, Manifest, Refused, commit_shard, create_dataset, read_shard, shard_bytes, verify
from shards.dataset.manifest_row import read_row, row_path, shard_path
from shards.dataset.writer import write_row
from shards.storage.files import commit_bytes, remove_stale_temporaries


@pytest.mark.parametrize(
    ("noise", "digest"),
    [
        ("stored", "fd634848a818cd5f99707e340e838d58570c07b0bb70a91c853102bc3b3483e1"),
        ("counter", "6f5e63da3d433e4343b8ab13f0d336f4f966a305efe27eb01549d9d9b02caca1"),
    ],
)
def test_golden_bytes(make_spec, make_pairs, noise, digest) -> None:
    """SHARD FORMAT: another value here means that shards are written differently than before."""
    spec = make_spec(noise=noise)
    assert hashlib.sha256(shard_bytes(spec, make_pairs(spec, 0))).hexdigest() == digest


@pytest.mark.parametrize("noise", ["stored", "counter"])
def test_plain_webdataset_reads_the_shards(make_spec, make_dataset, make_pairs, noise) -> None:
    manifest = make_dataset(make_spec(noise=noise), 2)
    urls = [str(shard_path(manifest.root, row.shard)) for row in manifest.rows]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{index:09d}" for index in range(16)]
    for index, sample in enumerate(samples):
        pairs = make_pairs(manifest.spec, index // 8)
        noise_LC = pairs.noise_BLC[index % 8]
        if noise == "stored":
            assert np.array_equal(sample["noise.npy"], noise_LC)
        else:
            assert int.from_bytes(sample["crc"], "little") == zlib.crc32(noise_LC.tobytes())
        assert np.array_equal(sample["tokens.npy"], pairs.tokens_BL[index % 8])
        assert sample["cls"] == index % 12


def test_row_describes_the_shard(make_spec, make_dataset, row_extras) -> None:
    manifest = make_dataset(make_spec(), 2)
    row, data = manifest.rows[1], shard_path(manifest.root, "pairs-000001").read_bytes()
    assert (row.shard, row.first_pair, row.num_pairs) == ("pairs-000001", 8, 8)
    assert (row.num_bytes, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert row.fingerprint == manifest.spec.fingerprint
    assert {name: getattr(row, name) for name in row_extras} == row_extras


def test_committing_twice_returns_the_first_row(make_spec, make_dataset, make_pairs, row_extras) -> None:
    spec = make_spec()
    manifest = make_dataset(spec, 1)
    path = shard_path(manifest.root, "pairs-000000")
    before = path.stat().st_mtime_ns
    row = commit_shard(manifest.root, spec, 0, make_pairs(spec, 0), row_extras | {"host": "elsewhere"})
    assert row == manifest.rows[0]
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("leftover", [b"half a tar", None])
def test_a_tar_without_a_row_is_replaced(tmp_path, make_spec, make_pairs, row_extras, leftover) -> None:
    spec, pairs = make_spec(), make_pairs(make_spec(), 0)
    create_dataset(tmp_path, spec)
    data = shard_bytes(spec, pairs)
    commit_bytes(shard_path(tmp_path, "pairs-000000"), data if leftover is None else leftover)
    commit_shard(tmp_path, spec, 0, pairs, row_extras)
    assert shard_path(tmp_path, "pairs-000000").read_bytes() == data
    assert verify(tmp_path) == []


@pytest.mark.parametrize("rival_has_tar", [True, False])
def test_a_rival_that_commits_its_row_first_wins(
    tmp_path, monkeypatch, make_spec, make_pairs, row_extras, columns_equal, rival_has_tar
) -> None:
    """Two devices that compute different tokens finish the same shard at the same moment."""
    spec, pairs = make_spec(), make_pairs(make_spec(), 0)
    rival_pairs = replace(pairs, tokens_BL=pairs.tokens_BL[::-1].copy())
    create_dataset(tmp_path / "rival", spec)
    rival_row = commit_shard(tmp_path / "rival", spec, 0, rival_pairs, row_extras | {"host": "rival"})
    rival_data = shard_path(tmp_path / "rival", "pairs-000000").read_bytes()
    create_dataset(tmp_path, spec)
    path = shard_path(tmp_path, "pairs-000000")
    if rival_has_tar:
        commit_bytes(path, rival_data)

    def rival_first(root, row):
        if not rival_has_tar:
            commit_bytes(path, rival_data)
        assert write_row(root, rival_row)
        return write_row(root, row)

    monkeypatch.setattr(shards.dataset.writer, "write_row", rival_first)
    assert commit_shard(tmp_path, spec, 0, pairs, row_extras) == rival_row
    assert columns_equal(read_shard(tmp_path, spec, rival_row), rival_pairs)


@pytest.mark.parametrize("moment", ["pop_bytes", "write_row"])
def test_two_rivals_that_both_find_a_leftover(
    tmp_path, monkeypatch, make_spec, make_pairs, row_extras, columns_equal, moment
) -> None:
    """The rival does all of its work just before this writer displaces the tar, or commits its row."""
    spec, pairs = make_spec(), make_pairs(make_spec(), 0)
    rival_pairs = replace(pairs, tokens_BL=pairs.tokens_BL[::-1].copy())
    create_dataset(tmp_path, spec)
    commit_bytes(shard_path(tmp_path, "pairs-000000"), b"half a tar")
    real = getattr(shards.dataset.writer, moment)

    def rival_first(*arguments):
        monkeypatch.setattr(shards.dataset.writer, moment, real)
        commit_shard(tmp_path, spec, 0, rival_pairs, row_extras | {"host": "rival"})
        return real(*arguments)

    monkeypatch.setattr(shards.dataset.writer, moment, rival_first)
    row = commit_shard(tmp_path, spec, 0, pairs, row_extras)
    assert row.host == "rival"
    assert columns_equal(read_shard(tmp_path, spec, row), rival_pairs)
    assert os.listdir(tmp_path / "shards") == ["pairs-000000.tar"]


def test_a_winner_whose_tar_was_displaced_puts_it_back(
    tmp_path, monkeypatch, make_spec, make_pairs, row_extras, columns_equal
) -> None:
    spec, pairs = make_spec(), make_pairs(make_spec(), 0)
    create_dataset(tmp_path, spec)

    def displaced_meanwhile(root, row):
        commit_bytes(shard_path(root, "pairs-000000"), b"of a rival that is slower with its row")
        return write_row(root, row)

    monkeypatch.setattr(shards.dataset.writer, "write_row", displaced_meanwhile)
    row = commit_shard(tmp_path, spec, 0, pairs, row_extras)
    assert columns_equal(read_shard(tmp_path, spec, row), pairs)


def test_pairs_of_another_shard_are_not_committed(tmp_path, make_spec, make_pairs, row_extras) -> None:
    spec = make_spec()
    with pytest.raises(Failed, match=r"pairs-000001 must contain the pairs 8 \.\. 15 in order"):
        commit_shard(tmp_path, spec, 1, make_pairs(spec, 0), row_extras)
    assert os.listdir(tmp_path) == []


def test_a_row_of_other_pairs_is_refused(make_spec, make_dataset, make_pairs, row_extras) -> None:
    root = make_dataset(make_spec(), 1).root
    other = make_spec(seed=8)
    with pytest.raises(Refused, match="belongs to other pairs"):
        commit_shard(root, other, 0, make_pairs(other, 0), row_extras)


KILLED_WRITERS = """
import os, signal, sys
from pathlib import Path
import numpy as np
import webdataset  # once, before there are children
from shards import Pairs, commit_shard, gaussian_noise, label
from shards.dataset.manifest import read_spec

def write(root, fatal_call, moment):
    link, calls = os.link, []

    def killing_link(*names):
        calls.append(names)
        if len(calls) == fatal_call and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        link(*names)
        if len(calls) == fatal_call:
            os.kill(os.getpid(), signal.SIGKILL)

    os.link = killing_link
    spec = read_spec(root)
    index_B = np.arange(8)
    tokens_BL = (31 * index_B[:, None] + 7 * np.arange(spec.num_tokens)) % spec.vocab_size
    noise_BLC = gaussian_noise(spec.seed, 0, 8, spec.noise_shape)
    extras = {"seconds": 1.5, "host": "here", "device": "cpu", "batch_size": 4, "versions": "numpy 2"}
    pairs = Pairs(index_B, noise_BLC, tokens_BL.astype(spec.token_dtype), label(index_B, spec.num_classes))
    commit_shard(root, spec, 0, pairs, extras)

for root in sorted(Path(sys.argv[1]).iterdir()):
    child = os.fork()
    if child == 0:
        fatal_call, moment = root.name.split("-")
        write(root, int(fatal_call), moment)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        sys.exit(f"{root.name} was not killed: {status}")
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, make_spec) -> Path:
    """Data sets, each named after the moment at which the writer of its first shard was killed."""
    folder = tmp_path_factory.mktemp("killed")
    for name in ("1-before", "1-after", "2-before", "2-after"):
        create_dataset(folder / name, make_spec())
    subprocess.run([sys.executable, "-c", KILLED_WRITERS, str(folder)], check=True)
    return folder


@pytest.mark.parametrize(
    ("place", "has_tar", "has_row"),
    [("1-before", False, False), ("1-after", True, False), ("2-before", True, False), ("2-after", True, True)],
)
def test_killed_anywhere_the_same_call_completes_it(
    killed, make_spec, make_pairs, row_extras, place, has_tar, has_row
) -> None:
    """A writer links first its tar, then its row: SIGKILL comes before and after each of the two calls."""
    root, spec = killed / place, make_spec()
    tar, row = shard_path(root, "pairs-000000"), row_path(root, "pairs-000000")
    assert (tar.exists(), row.exists()) == (has_tar, has_row)
    assert {finding.kind for finding in verify(root)} == ({"uncommitted"} if has_tar > has_row else set())

    pairs = make_pairs(spec, 0)
    committed = commit_shard(root, spec, 0, pairs, row_extras)
    assert tar.read_bytes() == shard_bytes(spec, pairs)
    assert read_row(root, "pairs-000000") == committed
    assert Manifest.open(root).rows == (committed,)
    assert verify(root) == []
    # The temporary file of the killed writer.
    assert sum(remove_stale_temporaries(folder, -1) for folder in (tar.parent, row.parent)) == 1
    assert os.listdir(tar.parent) == ["pairs-000000.tar"]
    assert os.listdir(row.parent) == ["pairs-000000.parquet"]
