"""Listing, reading and checking shards costs no torch, and naming them no pyarrow."""

from __future__ import annotations

import subprocess
import sys


def test_import_shards_loads_neither_torch_nor_pyarrow() -> None:
    code = "import sys, shards; print(sorted({'torch', 'webdataset', 'pyarrow'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
