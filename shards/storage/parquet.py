"""Parquet tables, read in the thread that asks: one of pyarrow's that is still at work when a process ends aborts it.

`pyarrow.parquet.read_table` starts such threads whatever it is told (Apache Arrow's issue 34314).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow


def read_parquet(
    data: bytes, columns: Sequence[str] | None = None, verify_checksums: bool = False
) -> pyarrow.Table:
    """The table of a Parquet file.

    Args:
        data: the file's bytes.
        columns: names of those to read; None for all.
        verify_checksums: check the pages that were written with a checksum.

    Raises:
        pyarrow.ArrowException, OSError: these are not the bytes of such a file.
    """
    import pyarrow
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(
        pyarrow.BufferReader(data), page_checksum_verification=verify_checksums
    )
    return file.read(columns=columns, use_threads=False)
