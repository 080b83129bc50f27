"""`import shards` imports neither torch nor pyarrow nor fsspec."""

from __future__ import annotations

import subprocess
import sys


def test_import_shards_loads_no_large_library() -> None:
    code = "import sys, shards; print(sorted({'torch', 'webdataset', 'pyarrow', 'fsspec', 'upath'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
