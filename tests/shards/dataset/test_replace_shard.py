"""Replacing a shard: equal bytes, a comparison with the remaining tokens, and kills at every moment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import shards.dataset.manifest_row
import shards.dataset.replace_shard
from shards import Manifest, read_shard, verify
from shards.dataset.manifest_row import remove_row, replace_row, row_path, shard_path
from shards.dataset.replace_shard import replace_shard

pytestmark = pytest.mark.quick

LATER = {"seconds": 9.0, "host": "elsewhere", "device": "gpu", "batch_size": 4, "versions": "numpy 3"}


@pytest.fixture
def elsewhere(make_spec, make_pairs):
    """The pairs of shard 1 as another platform computes them: three tokens of 48 differ."""
    pairs = make_pairs(make_spec(), 1)
    tokens_BL = pairs.tokens_BL.copy()
    tokens_BL[[0, 3, 7], [5, 0, 2]] ^= 1
    return replace(pairs, tokens_BL=tokens_BL)


def damage(data: bytes, kind: str) -> bytes:
    """A shard of 8 pairs, each 3 members of a header and a payload of 512 bytes."""
    stride = 6 * 512
    match kind:
        case "noise bit":
            return data[: stride + 1700] + bytes([data[stride + 1700] ^ 1]) + data[stride + 1701 :]
        case "cut":
            return data[: 5 * stride + 100]
        case "header":
            return data[: 2 * stride + 4 * 512] + bytes(512) + data[2 * stride + 5 * 512 :]
        case "shifted":
            return b"x" + data
        case "empty":
            return b""
    raise ValueError(kind)


@pytest.mark.parametrize("noise", ["stored", "counter"])
@pytest.mark.parametrize("kind", ["noise bit", "cut", "header", "shifted", "empty"])
def test_equal_bytes_keep_the_row(make_spec, make_dataset, make_pairs, noise, kind) -> None:
    spec = make_spec(noise=noise)
    manifest = make_dataset(spec, 2)
    path, row = shard_path(manifest.root, "pairs-000001"), row_path(manifest.root, "pairs-000001")
    data, row_data = path.read_bytes(), row.read_bytes()
    path.write_bytes(damage(data, kind))
    replaced = replace_shard(manifest.root, spec, 1, make_pairs(spec, 1), LATER, manifest.rows[1])
    assert (replaced.is_equal, replaced.row) == (True, manifest.rows[1])
    assert (path.read_bytes(), row.read_bytes()) == (data, row_data)


def test_a_row_whose_hashes_disagree_is_replaced(make_spec, make_dataset, make_pairs) -> None:
    manifest = make_dataset(make_spec(), 2)
    wrong = replace(manifest.rows[1], xxh3_128="0" * 32)
    replace_row(manifest.root, wrong)
    pairs = make_pairs(manifest.spec, 1)
    replaced = replace_shard(manifest.root, manifest.spec, 1, pairs, LATER, wrong)
    assert (replaced.is_equal, replaced.num_compared, replaced.num_differing) == (False, 48, 0)
    assert replaced.row.xxh3_128 == manifest.rows[1].xxh3_128
    assert verify(manifest.root) == []


def test_a_row_without_xxh3_128_is_kept(make_spec, make_dataset, make_pairs) -> None:
    manifest = make_dataset(make_spec(), 2)
    older = replace(manifest.rows[1], xxh3_128=None)
    replace_row(manifest.root, older)
    replaced = replace_shard(manifest.root, manifest.spec, 1, make_pairs(manifest.spec, 1), LATER, older)
    assert (replaced.is_equal, replaced.row) == (True, older)
    assert verify(manifest.root) == []


@pytest.mark.parametrize(
    ("kind", "readable", "differing"),
    [("noise bit", 8, 3), ("cut", 5, 2), ("header", 7, 3), ("shifted", 0, 0), ("empty", 0, 0)],
)
def test_other_bytes_are_compared_and_get_a_row(make_spec, make_dataset, elsewhere, kind, readable, differing) -> None:
    spec = make_spec()
    manifest = make_dataset(spec, 2)
    path = shard_path(manifest.root, "pairs-000001")
    path.write_bytes(damage(path.read_bytes(), kind))
    replaced = replace_shard(manifest.root, spec, 1, elsewhere, LATER, manifest.rows[1])
    assert (replaced.is_equal, replaced.num_tokens) == (False, 48)
    assert (replaced.num_compared, replaced.num_differing) == (6 * readable, differing)
    assert (replaced.row.host, replaced.row.sha256 == manifest.rows[1].sha256) == ("elsewhere", False)
    assert Manifest.open(manifest.root).rows == (manifest.rows[0], replaced.row)
    assert verify(manifest.root) == []


def test_a_lost_shard_leaves_nothing_to_compare(make_spec, make_dataset, elsewhere) -> None:
    manifest = make_dataset(make_spec(), 2)
    shard_path(manifest.root, "pairs-000001").unlink()
    remove_row(manifest.root, "pairs-000001")
    replaced = replace_shard(manifest.root, manifest.spec, 1, elsewhere, LATER, None)
    assert (replaced.is_equal, replaced.num_compared) == (False, 0)
    assert verify(manifest.root) == []


@pytest.mark.parametrize("left", [None, b"not a row"])
def test_a_lost_row_comes_back_from_the_joined_table(make_spec, make_dataset, make_pairs, left) -> None:
    manifest = make_dataset(make_spec(), 2)
    manifest.write_joined()
    path = row_path(manifest.root, "pairs-000001")
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    pairs = make_pairs(manifest.spec, 1)
    assert replace_shard(manifest.root, manifest.spec, 1, pairs, LATER, manifest.rows[1]).is_equal
    assert Manifest.open(manifest.root).rows == manifest.rows
    assert verify(manifest.root) == []


class Killed(BaseException):
    """Simulates SIGKILL."""


class Killer:
    """Counts the moments before and after each write or removal of a file, and raises `Killed` at one of them."""

    def __init__(self, fatal_moment: int) -> None:
        self.fatal_moment, self.moments = fatal_moment, 0

    def around(self, change):
        def changed(*arguments, **options):
            self.pass_moment()
            result = change(*arguments, **options)
            self.pass_moment()
            return result

        return changed

    def pass_moment(self) -> None:
        self.moments += 1
        if self.moments == self.fatal_moment:
            raise Killed


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(("same_platform", "num_moments"), [(True, 2), (False, 6)])
def test_killed_anywhere_the_damage_is_found_or_repaired(
    make_spec, make_dataset, make_pairs, elsewhere, monkeypatch, same_platform, num_moments, joined
) -> None:
    spec = make_spec()
    manifest = make_dataset(spec, 2)
    if joined:
        manifest.write_joined()
    path = shard_path(manifest.root, "pairs-000001")
    path.write_bytes(damage(path.read_bytes(), "noise bit"))
    initial = {file: file.read_bytes() for file in manifest.root.rglob("*") if file.is_file()}
    pairs = make_pairs(spec, 1) if same_platform else elsewhere
    found = []
    for moment in range(1, num_moments + 1):
        for file, data in initial.items():
            file.write_bytes(data)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            killer = Killer(moment)
            for module, name in (
                (shards.dataset.replace_shard, "commit_bytes"),
                (shards.dataset.manifest_row, "commit_bytes"),
                (shards.dataset.manifest_row, "remove"),
            ):
                patched.setattr(module, name, killer.around(getattr(module, name)))
            replace_shard(manifest.root, spec, 1, pairs, LATER, manifest.rows[1])
        found.append([finding.kind for finding in verify(manifest.root)])
    assert found == [["broken"]] * (num_moments - 1) + [[]]
    repaired = read_shard(manifest.root, spec, Manifest.open(manifest.root).rows[1])
    assert np.array_equal(repaired.tokens_BL, pairs.tokens_BL)
