"""Export of training pairs to one Parquet file: one row per pair, one row group per shard.

pyarrow is imported inside functions: importing it at the top would double the time of `--help`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from shards.core.callbacks import Report
from shards.dataset.manifest import Manifest, View
from shards.dataset.reader import read_view
from shards.format.pairs import Pairs
from shards.format.spec import PairSpec
from shards.storage.files import commit_file
from shards.storage.paths import Location

SPEC_KEY = "onestep.dataset"
"""Metadata key of the content of dataset.json. It contains the project's original name, as existing files do."""


def export_parquet(manifest: Manifest, out: Path, size: int | None = None, report: Report | None = None) -> View:
    """Write training pairs to one Parquet file atomically, with one shard in memory at a time.

    The columns are pair_index (int64), label (int64), caption (string; only with captions), noise, and tokens (a list of
    L numbers of the spec's token_dtype). Noise is stored as bytes of fixed size: L * C float16 numbers, little-endian,
    row by row. This keeps the exact bits for readers without half precision, and is 20 times faster than lists.

    Returns the view that was written: the first `size` training pairs, or all. `report` counts shards.

    Raises:
        Refused: the data set has fewer pairs, or `out` is not writable.
        Failed: a shard is damaged, or the disk is full.
    """
    view = manifest.view(size)
    commit_file(out, lambda temporary: _write(manifest.root, view, temporary, report))
    return view


def _write(root: Location, view: View, out: Path, report: Report | None) -> None:
    import pyarrow.parquet

    schema = _schema(view.spec)
    with pyarrow.parquet.ParquetWriter(
        out, schema, compression="none", use_dictionary=False, write_page_checksum=True
    ) as writer:
        for done, pairs in enumerate(read_view(root, view), start=1):
            batch = _record_batch(schema, pairs)
            writer.write_batch(batch, row_group_size=len(batch))
            if report is not None:
                report(done, len(view.rows), "")


def _schema(spec: PairSpec) -> Any:
    import pyarrow

    token_field = pyarrow.field("element", pyarrow.from_numpy_dtype(spec.token_dtype), nullable=False)
    num_tokens, codebook_dim = spec.noise_shape
    columns = [
        pyarrow.field("pair_index", pyarrow.int64(), nullable=False),
        pyarrow.field("label", pyarrow.int64(), nullable=False),
        *([pyarrow.field("caption", pyarrow.string(), nullable=False)] if spec.captions else []),
        pyarrow.field("noise", pyarrow.binary(2 * num_tokens * codebook_dim), nullable=False),
        pyarrow.field("tokens", pyarrow.list_(token_field, num_tokens), nullable=False),
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
