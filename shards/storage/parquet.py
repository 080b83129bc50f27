"""Reads Parquet tables in the calling thread: a pyarrow thread still running at process exit aborts the process.

`pyarrow.parquet.read_table` starts such threads whatever its arguments (Apache Arrow issue 34314).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow


def read_parquet(data: bytes, columns: Sequence[str] | None = None, verify_checksums: bool = False) -> pyarrow.Table:
    """Read the table of a Parquet file, or only some columns.

    With `verify_checksums`, pages that have a checksum are checked. Raises pyarrow.ArrowException or OSError if the
    bytes are not a readable Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data), page_checksum_verification=verify_checksums)
    return file.read(columns=columns, use_threads=False)
