"""The Parquet export of training pairs: the same pairs, one row group per shard, written atomically."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow.parquet
import pytest

from shards import Failed, Refused
from shards.dataset.manifest_row import shard_path
from shards.dataset.parquet_export import SPEC_KEY, export_parquet

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("noise", ["stored", "counter"])
@pytest.mark.parametrize("vocab_size", [64, 70_000])
@pytest.mark.parametrize(("size", "groups"), [(None, [8, 8, 8]), (11, [8, 3])])
def test_it_holds_the_training_pairs(
    make_spec, make_dataset, make_pairs, tmp_path, noise, vocab_size, size, groups
) -> None:
    spec = make_spec(noise=noise, vocab_size=vocab_size)
    manifest = make_dataset(spec, 4)
    out = tmp_path / "pairs.parquet"
    reported = []
    view = export_parquet(manifest, out, size, lambda *progress: reported.append(progress))
    file = pyarrow.parquet.ParquetFile(out)
    count = sum(groups)
    assert view.size == count
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == groups
    assert reported == [(done, len(groups), "") for done in range(1, len(groups) + 1)]
    assert json.loads(file.schema_arrow.metadata[SPEC_KEY.encode()]) == json.loads(json.dumps(spec.to_json()))
    table = file.read()
    wanted = [make_pairs(spec, index) for index in (1, 2, 3)]
    assert table["pair_index"].to_pylist() == list(range(8, 8 + count))
    assert table["label"].to_pylist() == [index % 12 for index in range(8, 8 + count)]
    noise_bytes = b"".join(pairs.noise_BLC.tobytes() for pairs in wanted)
    assert b"".join(table["noise"].to_pylist()) == noise_bytes[: count * 2 * 18]
    tokens_BL = np.concatenate([pairs.tokens_BL for pairs in wanted])[:count]
    assert table["tokens"].type.value_type == pyarrow.from_numpy_dtype(spec.token_dtype)
    assert table["tokens"].to_pylist() == tokens_BL.tolist()


def test_a_broken_shard_leaves_nothing(make_spec, make_dataset, tmp_path) -> None:
    manifest = make_dataset(make_spec(), 3)
    shard_path(manifest.root, "pairs-000002").write_bytes(b"")
    (tmp_path / "out").mkdir()
    with pytest.raises(Failed, match="pairs-000002"):
        export_parquet(manifest, tmp_path / "out" / "pairs.parquet")
    assert os.listdir(tmp_path / "out") == []
    with pytest.raises(Refused, match="has 16 training pairs"):
        export_parquet(manifest, tmp_path / "out" / "pairs.parquet", 17)
