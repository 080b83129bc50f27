"""The captions of a data set whose labels are their numbers: one Parquet file beside dataset.json.

pyarrow is imported where it is used: it would double the time that `--help` takes.
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
_REMEDY = "`tokenleap generate` with the same captions writes it again"


def captions_sha256(captions: Sequence[str]) -> str:
    """sha256 (hex) of a list of captions: of each its length in bytes of UTF-8, as 8 bytes, and these bytes."""
    digest = hashlib.sha256()
    for caption in captions:
        data = caption.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def commit_captions(root: Location | str, captions: Sequence[str]) -> bool:
    """Writes a data set's captions, unless there are some; whether it was these that were written.

    Raises:
        Failed: the disk is full.
        Refused: the place cannot be written to.
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([pyarrow.field(_COLUMN, pyarrow.string(), nullable=False)])
    table = pyarrow.table([pyarrow.array(captions, pyarrow.string())], schema=schema)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, use_dictionary=False, write_page_checksum=True)
    return commit_bytes(location(root) / CAPTIONS_FILE, buffer.getvalue(), exclusive=True)


def load_captions(root: Location | str, spec: PairSpec) -> list[str]:
    """A data set's captions, in the order of their numbers.

    Raises:
        Failed: the file is missing or damaged, or holds other captions; tells the remedy.
    """
    import pyarrow

    path = location(root) / CAPTIONS_FILE
    (data,) = read_each([path])
    if data is None:
        raise Failed(f"{path} is missing; {_REMEDY}")
    try:
        captions: list[str] = read_parquet(data, [_COLUMN], verify_checksums=True)[_COLUMN].to_pylist()
        found = captions_sha256(captions)
    except (pyarrow.ArrowException, OSError, KeyError, AttributeError, UnicodeError) as error:
        raise Failed(f"{path} is damaged ({error}); delete it, and {_REMEDY}") from error
    expected = (spec.captions or {}).get("sha256")
    if found != expected:
        raise Failed(
            f"{path} holds captions with sha256 {found[:12]}, and the pairs were made for {str(expected)[:12]}; "
            f"delete it, and {_REMEDY}"
        )
    return captions
