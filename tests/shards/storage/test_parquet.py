"""Parquet tables are read without pyarrow's threads: one that still runs at process exit aborts the process."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from shards.storage.parquet import read_parquet

pytestmark = pytest.mark.quick

COUNTING = """
import sys
from pathlib import Path

import pyarrow.parquet

from shards.storage.parquet import read_parquet

def num_threads():
    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    # The allocator's thread does not touch Python objects.
    return len(names) - names.count("jemalloc_bg_thd")

before = num_threads()
read_parquet(Path(sys.argv[1]).read_bytes())
print(num_threads() - before)
pyarrow.parquet.read_table(sys.argv[1], use_threads=False, pre_buffer=False)
print(num_threads() - before)
"""


def written(**more: bool) -> bytes:
    """A Parquet file with several row groups."""
    buffer = io.BytesIO()
    table = pyarrow.table({"step": list(range(1000)), "loss": [step / 3 for step in range(1000)]})
    pyarrow.parquet.write_table(table, buffer, row_group_size=100, **more)
    return buffer.getvalue()


def test_all_columns_or_some() -> None:
    assert read_parquet(written()).column_names == ["step", "loss"]
    losses = read_parquet(written(), ["loss"])
    assert losses.column_names == ["loss"]
    assert losses["loss"].to_pylist() == [step / 3 for step in range(1000)]


def test_checksums_find_a_changed_number() -> None:
    data = bytearray(written(write_page_checksum=True, use_dictionary=False, compression="none"))
    place = data.index(b"\x00\x00\x00\x00\x00\x00\x08\x40")
    data[place] ^= 1
    assert read_parquet(bytes(data))["loss"].to_pylist()[9] != 3.0
    with pytest.raises(OSError, match=r"(?i)crc"):
        read_parquet(bytes(data), verify_checksums=True)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_reading_starts_no_thread_unlike_pyarrow_itself(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(written())
    counted = subprocess.run([sys.executable, "-c", COUNTING, str(path)], capture_output=True, text=True, check=True)
    ours, theirs = map(int, counted.stdout.split())
    assert ours == 0
    assert theirs > 0
