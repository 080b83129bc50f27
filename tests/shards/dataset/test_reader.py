"""Reading a shard returns what was written, or raises an error."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from shards import Failed, Manifest, Pairs, read_shard, shard_bytes, verify
from shards.dataset.manifest_row import ManifestRow, shard_path
from shards.dataset.reader import decode_shard
from shards.format.tar_layout import archive_size, bytes_per_pair, layout_of


def row_of(spec, pairs: Pairs) -> ManifestRow:
    return ManifestRow("pairs", int(pairs.index_B[0]), len(pairs), 0, "", spec.fingerprint, 0.0, "", "", 1, "")


@pytest.mark.parametrize("noise", ["stored", "counter"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tokens_per_step": (300,), "codebook_dim": 1},
        {"vocab_size": 70_000},
        {"tokens_per_step": (32,), "codebook_dim": 6},
        {"pairs_per_shard": 1},
    ],
)
def test_round_trip(make_spec, make_pairs, columns_equal, noise, shape) -> None:
    """The shapes include payloads that fill their blocks exactly, and labels of one to seven digits."""
    spec = make_spec(noise=noise, num_classes=2_000_000, **shape)
    for shard_index in (0, 1, 12, 124, 1_249, 1_250, 9_999, 10_000, 125_000):
        pairs = make_pairs(spec, shard_index)
        assert columns_equal(decode_shard(spec, row_of(spec, pairs), shard_bytes(spec, pairs)), pairs)


def test_read_shard_reads_what_was_committed(make_spec, make_dataset, make_pairs, columns_equal) -> None:
    manifest = make_dataset(make_spec(), 2)
    for checked in (True, False):
        found = read_shard(manifest.root, manifest.spec, manifest.rows[1], verify=checked)
        assert columns_equal(found, make_pairs(manifest.spec, 1))


def test_labels_are_read_not_computed(make_spec, make_pairs) -> None:
    spec = make_spec()
    pairs = replace(make_pairs(spec, 0), label_B=np.array([11, 0, 3, 3, 10, 1, 2, 9]))
    found = decode_shard(spec, row_of(spec, pairs), shard_bytes(spec, pairs))
    assert found.label_B.tolist() == [11, 0, 3, 3, 10, 1, 2, 9]


def test_layout_is_the_writers(make_spec, make_pairs) -> None:
    spec = make_spec()
    data = shard_bytes(spec, make_pairs(spec, 0))
    layout = layout_of(spec)
    assert (layout.stride, len(data)) == (6 * 512, archive_size(8 * layout.stride))
    assert layout.stride == bytes_per_pair(spec)
    for pair in range(8):
        for member in (layout.label, layout.noise, layout.tokens):
            name = f"{pair:09d}.{member.extension}".encode()
            assert data[pair * layout.stride + member.offset :].startswith(name + b"\0")


def test_every_bit_around_the_payloads_counts_even_without_the_hash(make_spec, make_pairs) -> None:
    spec = make_spec()
    pairs = make_pairs(spec, 0)
    data, layout = shard_bytes(spec, pairs), layout_of(spec)
    payload = np.zeros(len(data), dtype=bool)
    for pair in range(8):
        start = pair * layout.stride
        payload[start + 512] = True  # the label's one digit
        for member in (layout.noise, layout.tokens):
            payload[start + member.data.start : start + member.data.stop] = True
    draw = random.Random(0)
    for place in draw.sample(np.flatnonzero(~payload).tolist(), 400):
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        with pytest.raises(Failed):
            decode_shard(spec, row_of(spec, pairs), bytes(damaged))


def test_the_first_misplaced_pair_is_named(make_spec, make_pairs) -> None:
    spec = make_spec()
    data, stride = bytearray(shard_bytes(spec, make_pairs(spec, 1))), layout_of(spec).stride
    data[2 * stride : 4 * stride] = data[3 * stride : 4 * stride] + data[2 * stride : 3 * stride]
    with pytest.raises(Failed, match="the sample of pair 10 does not have the layout"):
        decode_shard(spec, row_of(spec, make_pairs(spec, 1)), bytes(data))


def test_noise_that_is_not_its_counters_is_named(make_spec, make_pairs) -> None:
    spec = make_spec(noise="counter")
    pairs = make_pairs(spec, 1)
    noise_BLC = pairs.noise_BLC.copy()
    noise_BLC[5, 0, 0] += 1
    data = shard_bytes(spec, replace(pairs, noise_BLC=noise_BLC))
    with pytest.raises(Failed, match="the noise of pair 13 regenerated from its counter"):
        decode_shard(spec, row_of(spec, pairs), data)


def test_a_missing_file_is_named_with_its_remedy(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 1)
    shard_path(manifest.root, "pairs-000000").unlink()
    with pytest.raises(Failed, match=rf"pairs-000000\.tar.*missing; run `tokenleap shards repair {manifest.root}`"):
        read_shard(manifest.root, manifest.spec, manifest.rows[0])


def assert_damage_is_found(manifest: Manifest, damaged: set[str]) -> None:
    for row in manifest.rows:
        if row.shard in damaged:
            with pytest.raises(Failed, match=rf"{row.shard}\.tar.*tokenleap shards repair"):
                read_shard(manifest.root, manifest.spec, row)
    findings = verify(manifest.root)
    assert {(finding.kind, finding.where) for finding in findings} == {
        ("broken", str(shard_path(manifest.root, name))) for name in damaged
    }


@pytest.fixture(params=["stored", "counter"])
def manifest(request, make_spec, make_dataset) -> Manifest:
    return make_dataset(make_spec(noise=request.param), 3)


@pytest.mark.parametrize("damage", ["flip", "truncate", "zero", "extend"])
def test_random_damage_is_found_every_time(manifest, damage) -> None:
    path = shard_path(manifest.root, "pairs-000001")
    intact = path.read_bytes()
    draw = random.Random(1)
    for _ in range(40):
        data = bytearray(intact)
        place = draw.randrange(len(data))
        if damage == "flip":
            data[place] ^= 1 << draw.randrange(8)
        elif damage == "truncate":
            # Also at sample boundaries, where a tar reader detects nothing.
            del data[place if draw.random() < 0.5 else place // 3072 * 3072 :]
        elif damage == "zero":
            first = draw.randrange(8)
            count = draw.randint(1, 8 - first)
            data[first * 3072 : (first + count) * 3072] = bytes(count * 3072)
        else:
            data += bytes(draw.choice([1, 512, 10240]))
        path.write_bytes(data)
        assert_damage_is_found(manifest, {"pairs-000001"})
    path.write_bytes(intact)
    assert verify(manifest.root) == []


def test_swapped_shards_are_found(manifest) -> None:
    paths = [shard_path(manifest.root, row.shard) for row in manifest.rows]
    contents = [path.read_bytes() for path in paths]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        paths[one].write_bytes(contents[other])
        paths[other].write_bytes(contents[one])
        assert_damage_is_found(manifest, {manifest.rows[one].shard, manifest.rows[other].shard})
        with pytest.raises(Failed, match="does not have the layout"):
            read_shard(manifest.root, manifest.spec, manifest.rows[one], verify=False)
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
    assert verify(manifest.root) == []
