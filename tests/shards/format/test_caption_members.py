"""Captions in shards: stored exactly, checked like all other members, and never mixed with another list."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset

from shards import Failed, Manifest, Pairs, PairSpec, Refused, commit_shard, read_shard, verify
from shards.dataset.captions import CAPTIONS_FILE, captions_sha256, commit_captions, load_captions
from shards.dataset.manifest import refuse_other_spec
from shards.dataset.manifest_row import shard_path
from shards.dataset.parquet_export import export_parquet
from shards.dataset.reader import decode_shard
from shards.dataset.replace_shard import replace_shard
from shards.dataset.writer import shard_and_row, shard_bytes
from shards.format.pairs import label
from shards.format.tar_layout import bytes_per_pair, layout_of
from shards.streaming.stream import PairStream

ODD = (
    "a cat",
    "",
    "quotes \"double\", 'single', a comma",
    "an emoji 🦘 and a flag 🇦🇺",
    "قطة على سجادة \u200f",
    "two\nlines, a tab\t and a nul \x00",
    "x" * 512,
    "y" * 513,
    "é" * 5_000,
    "  blanks around  ",
)
EXTRAS = {"seconds": 1.5, "host": "here", "device": "cpu", "batch_size": 4, "versions": "numpy 2"}


def with_captions(spec: PairSpec, captions: Sequence[str] = ODD) -> PairSpec:
    settings = {"sha256": captions_sha256(captions), "name": "odd.txt"}
    return replace(spec, num_classes=len(captions), captions=settings)


@pytest.fixture
def spec(make_spec) -> PairSpec:
    return with_captions(make_spec())


@pytest.fixture
def texts(make_pairs):
    """Makes the pairs of a shard with the captions of their labels."""

    def make(spec: PairSpec, shard_index: int, captions: Sequence[str] = ODD) -> Pairs:
        pairs = make_pairs(spec, shard_index)
        text_B = np.array([captions[index] for index in label(pairs.index_B, len(captions))], dtype=object)
        return replace(pairs, text_B=text_B)

    return make


@pytest.fixture
def dataset(tmp_path: Path, make_dataset, texts):
    def make(spec: PairSpec, num_shards: int) -> Manifest:
        commit_captions(tmp_path / "pairs", ODD)
        return make_dataset(spec, num_shards, texts)

    return make


def test_webdataset_reads_the_captions(spec, dataset) -> None:
    manifest = dataset(spec, 2)
    urls = [str(shard_path(manifest.root, row.shard)) for row in manifest.rows]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{index:09d}" for index in range(16)]
    assert [sample["txt"] for sample in samples] == [ODD[index % 10] for index in range(16)]
    assert [sample["cls"] for sample in samples] == [index % 10 for index in range(16)]


@pytest.mark.parametrize("noise", ["stored", "counter"])
def test_round_trip(spec, texts, columns_equal, noise) -> None:
    spec = replace(spec, noise=noise)
    for shard_index in (0, 1, 7):
        pairs = texts(spec, shard_index)
        data, row = shard_and_row(spec, shard_index, pairs, EXTRAS)
        found = decode_shard(spec, row, data)
        assert columns_equal(found, pairs)
        assert found.text_B is not None
        assert found.text_B.tolist() == pairs.text_B.tolist()


def test_a_sample_is_laid_out_as_documented(spec, texts) -> None:
    pairs = texts(spec, 0)
    data, start = shard_bytes(spec, pairs), 0
    for index, text in enumerate(pairs.text_B):
        content = text.encode()
        at = start + layout_of(spec).stride
        assert data[at:].startswith(f"{index:09d}.txt\0".encode())
        assert int(data[at + 124 : at + 135], 8) == len(content)
        assert data[at + 512 : at + 512 + len(content)] == content
        start = at + 512 + -(-len(content) // 512) * 512
    assert not any(data[start:])
    assert len(data) % 10_240 == 0
    assert bytes_per_pair(spec) == layout_of(spec).stride + 1_024


@pytest.mark.parametrize("noise", ["stored", "counter"])
def test_streams_the_same_pairs(spec, dataset, noise) -> None:
    spec = replace(spec, noise=noise)
    manifest = dataset(spec, 5)
    shards = {row.first_pair: read_shard(manifest.root, spec, row) for row in manifest.rows}
    stream = PairStream(manifest.root, manifest.view(), batch_size=8, seed=3, window=2)
    seen = []
    for _ in range(8):
        batch = next(stream)
        for place, index in enumerate(batch.index_B.tolist()):
            whole = shards[index // 8 * 8]
            at = index % 8
            assert batch.noise_BLC[place].numpy().tobytes() == whole.noise_BLC[at].tobytes()
            assert batch.tokens_BL[place].tolist() == whole.tokens_BL[at].tolist()
            assert int(batch.label_B[place]) == index % 10
        seen += batch.index_B.tolist()
    assert sorted(seen) == sorted([*range(8, 40)] * 2)


def test_every_damaged_byte_is_found(spec, texts) -> None:
    """Decoding detects it, except within a payload: there exactly one column changes, which the hash detects."""
    pairs = texts(spec, 0)
    data, row = shard_and_row(spec, 0, pairs, EXTRAS)
    choice, stride = random.Random(5), layout_of(spec).stride
    first_text = slice(stride, stride + 1_024)
    places = [*range(first_text.start, first_text.stop), *(choice.randrange(len(data)) for _ in range(2_000))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << choice.randrange(8)
        try:
            found = decode_shard(spec, row, bytes(damaged))
        except Failed:
            continue
        same = (
            found.noise_BLC.tobytes() == pairs.noise_BLC.tobytes(),
            found.tokens_BL.tobytes() == pairs.tokens_BL.tobytes(),
            found.label_B.tolist() == pairs.label_B.tolist(),
            found.text_B.tolist() == pairs.text_B.tolist(),
        )
        assert same.count(False) == 1, place


@pytest.mark.parametrize("keep", [0, 100, 512, 3_000, 5_000, 10_240, -10_240, -512, -1])
def test_a_truncated_file_is_refused(spec, texts, keep) -> None:
    data, row = shard_and_row(spec, 0, texts(spec, 0), EXTRAS)
    with pytest.raises(Failed):
        decode_shard(spec, row, data[:keep])


@pytest.mark.parametrize("size", [b"77777777777", b"0000000000x", b"\x80\0\0\0\0\0\0\0\0\0\0", b"           "])
def test_an_invalid_size_is_refused(spec, texts, size) -> None:
    data, row = shard_and_row(spec, 0, texts(spec, 0), EXTRAS)
    at = layout_of(spec).stride + 124
    with pytest.raises(Failed):
        decode_shard(spec, row, data[:at] + size + data[at + 11 :])


def test_text_that_is_not_utf8_is_refused(spec, texts) -> None:
    data, row = shard_and_row(spec, 0, texts(spec, 0), EXTRAS)
    at = layout_of(spec).stride + 512
    with pytest.raises(Failed, match="the caption of pair 0 is not UTF-8"):
        decode_shard(spec, row, data[:at] + b"\xff" + data[at + 1 :])


def test_captions_must_be_present_exactly_if_the_spec_has_them(spec, make_spec, texts, make_pairs) -> None:
    with pytest.raises(Failed, match="text_B is missing: the data set contains captions"):
        shard_bytes(spec, make_pairs(spec, 0))
    with pytest.raises(Failed, match="text_B is present: the data set contains classes"):
        shard_bytes(make_spec(), texts(spec, 0))


def test_take_and_concatenate_keep_captions(spec, texts) -> None:
    joined = Pairs.concatenate([texts(spec, 0), texts(spec, 1)])
    assert joined.take(np.array([15, 3])).text_B.tolist() == [ODD[5], ODD[3]]


def test_the_list_of_captions_round_trips(tmp_path, spec) -> None:
    assert commit_captions(tmp_path, ODD)
    assert load_captions(tmp_path, spec) == list(ODD)
    first = (tmp_path / CAPTIONS_FILE).read_bytes()
    assert not commit_captions(tmp_path, ODD[:3])
    assert (tmp_path / CAPTIONS_FILE).read_bytes() == first


def test_a_list_that_is_missing_damaged_or_different_is_refused(tmp_path, spec) -> None:
    with pytest.raises(Failed, match=r"captions\.parquet is missing; run `tokenleap generate` with the same captions"):
        load_captions(tmp_path, spec)
    commit_captions(tmp_path, ODD)
    whole = (tmp_path / CAPTIONS_FILE).read_bytes()
    choice = random.Random(1)
    for place in choice.sample(range(len(whole)), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 0x20
        (tmp_path / CAPTIONS_FILE).write_bytes(damaged)
        # A change that no checksum covers, as in the writer's name, changes no caption.
        try:
            loaded, message = load_captions(tmp_path, spec), ""
        except Failed as error:
            loaded, message = None, str(error)
        assert loaded == list(ODD) or "delete it" in message
    (tmp_path / CAPTIONS_FILE).write_bytes(whole)
    with pytest.raises(Failed, match="but the pairs were generated for"):
        load_captions(tmp_path, with_captions(spec, ("a dog",)))


def test_a_million_captions_are_written_and_read_in_seconds(tmp_path, spec) -> None:
    captions = [f"a photograph of thing number {number} on a table" for number in range(1_000_000)]
    began = time.monotonic()
    commit_captions(tmp_path, captions)
    assert load_captions(tmp_path, with_captions(spec, captions)) == captions
    assert time.monotonic() - began < 60


def test_captions_are_part_of_the_fingerprint_and_their_name_is_not(make_spec) -> None:
    plain, odd = make_spec(), with_captions(make_spec())
    assert PairSpec.from_json(odd.to_json()) == odd
    assert "captions" not in plain.to_json()
    renamed = replace(odd, captions={**odd.captions, "name": "another.txt"})
    other = replace(odd, captions={"sha256": captions_sha256(["a dog"])})
    fingerprints = [spec.fingerprint for spec in (plain, odd, renamed, other)]
    assert fingerprints[1] == fingerprints[2]
    assert len(set(fingerprints)) == 3
    # Lengths are part of the hash: one text split differently gives different lists.
    assert len({captions_sha256(split) for split in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""])}) == 4
    with pytest.raises(Refused, match=r"captions\.sha256 is missing"):
        replace(odd, captions={"name": "odd.txt"})


def test_two_lists_never_mix(spec, dataset, texts) -> None:
    manifest = dataset(spec, 1)
    other = with_captions(spec, [*ODD[:-1], "another"])
    with pytest.raises(Refused, match=r"captions\.sha256: found \w+, requested \w+"):
        refuse_other_spec(manifest.root, other)
    with pytest.raises(Refused, match="already contains pairs-000000"):
        commit_shard(manifest.root, other, 0, texts(other, 0), EXTRAS)


def test_verify_reads_captions_too(spec, dataset, texts) -> None:
    manifest = dataset(spec, 2)
    assert verify(manifest.root) == []
    swapped = texts(spec, 1, ODD[::-1])
    replace_shard(manifest.root, spec, 1, swapped, EXTRAS, None)
    (finding,) = verify(manifest.root)
    assert (finding.kind, finding.where) == ("captions", str(shard_path(manifest.root, "pairs-000001")))
    assert finding.message == "8 pairs, the first of them 8, hold a caption that is not their label's"
    (manifest.root / CAPTIONS_FILE).unlink()
    (finding,) = verify(manifest.root)
    assert (finding.kind, finding.where) == ("captions", str(manifest.root / CAPTIONS_FILE))


def test_replacing_a_shard_compares_the_remaining_tokens(spec, dataset, texts) -> None:
    manifest = dataset(spec, 1)
    path, pairs = shard_path(manifest.root, "pairs-000000"), texts(spec, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    replaced = replace_shard(manifest.root, spec, 0, pairs, EXTRAS, manifest.rows[0])
    assert replaced.is_equal
    assert path.read_bytes() == whole
    tokens_BL = pairs.tokens_BL.copy()
    tokens_BL[2, 0] ^= 1
    replaced = replace_shard(manifest.root, spec, 0, replace(pairs, tokens_BL=tokens_BL), EXTRAS, None)
    assert (replaced.is_equal, replaced.num_compared, replaced.num_differing) == (False, 48, 1)


def test_a_parquet_export_contains_the_captions(spec, dataset, tmp_path) -> None:
    manifest = dataset(spec, 3)
    export_parquet(manifest, tmp_path / "pairs.parquet", 10)
    table = pyarrow.parquet.read_table(tmp_path / "pairs.parquet")
    assert table["caption"].to_pylist() == [ODD[index % 10] for index in range(8, 18)]
