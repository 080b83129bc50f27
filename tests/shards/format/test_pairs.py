"""The spec with its fingerprint and JSON, pairs in columns, and one pair as a sample."""

from __future__ import annotations

import io
import json
import zlib

import numpy as np
import pytest

from shards import Failed, Pairs, PairSpec, Refused, label, shard_bytes
from shards.format.pairs import encode_pair

pytestmark = pytest.mark.quick


def test_label_depends_on_the_index_alone() -> None:
    assert label(25, 12) == 1
    assert label(np.arange(5, 9), 7).tolist() == [5, 6, 0, 1]


def test_derived_sizes(make_spec) -> None:
    spec = make_spec()
    assert (spec.num_tokens, spec.noise_shape, spec.token_dtype) == (6, (6, 3), np.uint16)
    assert make_spec(vocab_size=65536).token_dtype == np.uint16
    assert make_spec(vocab_size=65537).token_dtype == np.int32


def test_fingerprint_is_a_constant_of_the_content(make_spec) -> None:
    """PAIR: another value means that no existing data set can be extended."""
    assert make_spec().fingerprint == "0a2db3cde642c49f13f60827a87796b31149ca74e57a254f45499df1a786646b"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"lineage": {"teacher": {"name": "small", "top_k": 6}, "dtype": "float32"}}, False),
        ({"tokens_per_step": (1, 3, 2)}, False),
        ({"vocab_size": 65}, False),
        ({"codebook_dim": 4}, False),
        ({"num_classes": 11}, False),
        ({"seed": 8}, False),
        ({"num_heldout": 16}, True),
        ({"pairs_per_shard": 4}, True),
        ({"noise": "counter"}, True),
    ],
)
def test_what_determines_a_pair_changes_the_fingerprint_and_how_it_is_stored_does_not(make_spec, change, same) -> None:
    assert (make_spec(**change).fingerprint == make_spec().fingerprint) is same


def test_a_name_does_not_change_the_fingerprint(make_spec) -> None:
    """The same weights in a file with another name give the same pairs."""
    renamed = make_spec(lineage={"teacher": {"name": "other", "top_k": 5}, "dtype": "float32"})
    nameless = make_spec(lineage={"teacher": {"top_k": 5}, "dtype": "float32"})
    assert renamed.fingerprint == nameless.fingerprint == make_spec().fingerprint
    assert renamed.to_json()["lineage"]["teacher"]["name"] == "other"


def test_json_round_trip(make_spec) -> None:
    content = json.loads(json.dumps(make_spec().to_json()))
    assert PairSpec.from_json(content) == make_spec()
    assert content["tokens_per_step"] == [1, 2, 3]
    assert (content["V"], content["C"]) == (64, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"seed": 8}, "fingerprint is .* the file was edited"),
        ({"num_heldout": 0}, "sha256 is .* the file was edited"),
        ({"pairs_per_shard": 16}, "sha256 is .* the file was edited"),
        ({"lineage": {"teacher": {"name": "smaII", "top_k": 5}, "dtype": "float32"}}, "sha256 is"),
        ({"sha257": ""}, "the key 'sha257' is unknown"),
    ],
)
def test_json_that_was_edited_is_refused(make_spec, change, message) -> None:
    with pytest.raises(Refused, match=message):
        PairSpec.from_json(make_spec().to_json() | change)


def test_json_of_an_older_data_set_without_a_hash_is_read(make_spec) -> None:
    content = make_spec().to_json()
    del content["sha256"]
    assert PairSpec.from_json(content) == make_spec()


def test_json_without_a_key_is_refused_by_its_name(make_spec) -> None:
    content = make_spec().to_json()
    del content["num_classes"]
    with pytest.raises(Refused, match="'num_classes' is missing"):
        PairSpec.from_json(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": "none"}, "noise is 'none'"),
        ({"pairs_per_shard": 0}, "pairs_per_shard contains 0"),
        ({"tokens_per_step": (1, 0)}, "tokens_per_step contains 0"),
        ({"tokens_per_step": ()}, "tokens_per_step is empty"),
        ({"seed": -1}, "seed is -1"),
        ({"num_heldout": -8}, "num_heldout is -8"),
    ],
)
def test_impossible_specs_are_refused(make_spec, change, message) -> None:
    with pytest.raises(Refused, match=message):
        make_spec(**change)


def test_take_and_concatenate(make_spec, make_pairs, columns_equal) -> None:
    pairs = make_pairs(make_spec(), 1)
    assert len(pairs) == 8
    assert pairs.take(np.array([3, 0])).index_B.tolist() == [11, 8]
    assert columns_equal(Pairs.concatenate([pairs.take(slice(0, 3)), pairs.take(slice(3, 8))]), pairs)


def test_stored_sample(make_spec, make_pairs) -> None:
    spec, pairs = make_spec(), make_pairs(make_spec(), 1)
    sample = encode_pair(spec, 9, pairs.noise_BLC[1], pairs.tokens_BL[1], 9)
    assert sample.keys() == {"__key__", "cls", "noise.npy", "tokens.npy"}
    assert (sample["__key__"], sample["cls"]) == ("000000009", b"9")
    assert sample["noise.npy"][:8] == b"\x93NUMPY\x01\x00"
    noise_LC = np.load(io.BytesIO(sample["noise.npy"]))
    assert noise_LC.dtype == np.float16
    assert np.array_equal(noise_LC, pairs.noise_BLC[1])
    assert np.array_equal(np.load(io.BytesIO(sample["tokens.npy"])), pairs.tokens_BL[1])


def test_counter_sample_holds_the_checksum_of_the_noise(make_spec, make_pairs) -> None:
    spec, pairs = make_spec(noise="counter"), make_pairs(make_spec(), 1)
    sample = encode_pair(spec, 9, pairs.noise_BLC[1], pairs.tokens_BL[1], 9)
    assert sample.keys() == {"__key__", "cls", "crc", "tokens.npy"}
    assert int.from_bytes(sample["crc"], "little") == zlib.crc32(pairs.noise_BLC[1].tobytes())


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("noise_BLC", lambda noise: noise.astype(np.float32), "noise_BLC is float32"),
        ("noise_BLC", lambda noise: noise * np.float16(np.inf), "not finite"),
        ("tokens_BL", lambda tokens: tokens[:, 1:], r"tokens_BL is uint16 \(8, 5\)"),
        ("tokens_BL", lambda tokens: tokens + np.uint16(64), "tokens_BL ranges over"),
        ("label_B", lambda labels: labels - 8, "label_B ranges over -8"),
    ],
)
def test_pairs_that_break_the_spec_are_not_written(make_spec, make_pairs, column, change, message) -> None:
    spec = make_spec()
    columns = dict(vars(make_pairs(spec, 0)))
    columns[column] = change(columns[column])
    with pytest.raises(Failed, match=message):
        shard_bytes(spec, Pairs(**columns))
