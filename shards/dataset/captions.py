"""The captions of a data set whose labels are indices of captions: one Parquet file next to dataset.json.

pyarrow is imported inside functions: importing it at the top would double the time of `--help`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

from shards.core.errors import Failed
from shards.format.spec import PairSpec
from shards.storage.files import commit_bytes, read_each
from shards.storage.parquet import read_parquet
from shards.storage.paths import Location, location

CAPTIONS_FILE = "captions.parquet"
_COLUMN = "caption"
_REMEDY = "run `tokenleap generate` with the same captions to write it again"


def captions_sha256(captions: Sequence[str]) -> str:
    """sha256 (hex) of captions: of each, its length in bytes (8 bytes, little-endian) and its UTF-8 bytes."""
    digest = hashlib.sha256()
    for caption in captions:
        data = caption.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def commit_captions(root: Location | str, captions: Sequence[str]) -> bool:
    """Write a data set's captions. Returns False, and writes nothing, if the file exists."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([pyarrow.field(_COLUMN, pyarrow.string(), nullable=False)])
    table = pyarrow.table([pyarrow.array(captions, pyarrow.string())], schema=schema)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, use_dictionary=False, write_page_checksum=True)
    return commit_bytes(location(root) / CAPTIONS_FILE, buffer.getvalue(), exclusive=True)


def load_captions(root: Location | str, spec: PairSpec) -> list[str]:
    """Read a data set's captions, in the order of their labels.

    Raises `Failed` with the remedy if they are missing, damaged, or not those that the pairs were generated for.
    """
    import pyarrow

    path = location(root) / CAPTIONS_FILE
    (data,) = read_each([path])
    if data is None:
        raise Failed(f"{path} is missing; {_REMEDY}")
    try:
        captions: list[str] = read_parquet(data, [_COLUMN], verify_checksums=True)[_COLUMN].to_pylist()
        sha256 = captions_sha256(captions)
    except (pyarrow.ArrowException, OSError, KeyError, AttributeError, UnicodeError) as error:
        raise Failed(f"{path} is damaged ({error}); delete it and {_REMEDY}") from error
    expected = (spec.captions or {}).get("sha256")
    if sha256 != expected:
        raise Failed(
            f"{path} contains captions with sha256 {sha256[:12]}, but the pairs were generated for "
            f"{str(expected)[:12]}; delete it and {_REMEDY}"
        )
    return captions
