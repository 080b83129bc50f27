"""Training pairs as one Parquet file, for programs that read tables: a row a pair, a row group a shard.

pyarrow is imported where it is used: it would double the time that `--help` takes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from shards.core.callbacks import Report
from shards.dataset.manifest import Manifest, View
from shards.dataset.reader import read_shard
from shards.format.pairs import Pairs
from shards.format.spec import PairSpec
from shards.storage.files import commit_file
from shards.storage.paths import Location

SPEC_KEY = "onestep.dataset"
"""Metadata key of the content of dataset.json; it carries the project's first name, because files with it exist."""


def export_parquet(
    manifest: Manifest, out: Path, size: int | None = None, report: Report | None = None
) -> View:
    """Writes training pairs into one Parquet file, whole or not at all; one shard is in memory at a time.

    Its columns are pair_index (int64), label (int64), where there are captions caption (string), noise and tokens (a
    list of L numbers of the spec's token_dtype). Noise is L * C float16 numbers, little-endian, row by row, as bytes of
    fixed size: the exact bits, also for readers that know no half precision, and written 20 times as fast as a list of
    numbers.

    Args:
        manifest: of the data set.
        out: the file; what stands there is replaced.
        size: the first so many training pairs; None for all.
        report: called with (shards written, shards in all, note).

    Returns:
        The pairs that were written.

    Raises:
        Refused: there are fewer pairs, or `out` cannot be written to.
        Failed: a shard is broken, or the disk is full.
    """
    view = manifest.view(size)
    commit_file(out, lambda temporary: _write(manifest.root, view, temporary, report))
    return view


def _write(root: Location, view: View, out: Path, report: Report | None) -> None:
    import pyarrow.parquet

    schema = _schema(view.spec)
    stop = view.first + view.size
    with pyarrow.parquet.ParquetWriter(
        out, schema, compression="none", use_dictionary=False, write_page_checksum=True
    ) as writer:
        for done, row in enumerate(view.rows, start=1):
            pairs = read_shard(root, view.spec, row)
            inside = (pairs.index_B >= view.first) & (pairs.index_B < stop)
            batch = _record_batch(schema, pairs if inside.all() else pairs.take(inside))
            writer.write_batch(batch, row_group_size=len(batch))
            if report is not None:
                report(done, len(view.rows), "")


def _schema(spec: PairSpec) -> Any:
    import pyarrow

    token = pyarrow.from_numpy_dtype(spec.token_dtype)
    num_tokens, codebook_dim = spec.noise_shape
    columns = [
        pyarrow.field("pair_index", pyarrow.int64(), nullable=False),
        pyarrow.field("label", pyarrow.int64(), nullable=False),
        *([pyarrow.field("caption", pyarrow.string(), nullable=False)] if spec.captions else []),
        pyarrow.field("noise", pyarrow.binary(2 * num_tokens * codebook_dim), nullable=False),
        pyarrow.field(
            "tokens",
            pyarrow.list_(pyarrow.field("element", token, nullable=False), num_tokens),
            nullable=False,
        ),
    ]
    return pyarrow.schema(columns, metadata={SPEC_KEY: json.dumps(spec.to_json(), allow_nan=False)})


def _record_batch(schema: Any, pairs: Pairs) -> Any:
    import pyarrow

    noise = np.ascontiguousarray(pairs.noise_BLC, dtype="<f2")
    noise_type, tokens_type = schema.field("noise").type, schema.field("tokens").type
    columns = [
        pyarrow.array(pairs.index_B),
        pyarrow.array(pairs.label_B),
        *([] if pairs.text_B is None else [pyarrow.array(pairs.text_B, pyarrow.string())]),
        pyarrow.Array.from_buffers(noise_type, len(pairs), [None, pyarrow.py_buffer(noise)]),
        pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(pairs.tokens_BL.reshape(-1)), type=tokens_type),
    ]
    return pyarrow.record_batch(columns, schema=schema)
