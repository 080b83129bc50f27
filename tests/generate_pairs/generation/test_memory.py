"""Memory of full-size published teachers, each in its own process.

The measure is the peak of resident pages, anonymous and mapped (`VmHWM` of /proc/self/status, reset before the work),
minus the resident pages before the work. The weights are one random tile, repeated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MAKE = """
import sys
import torch
from generate_pairs.teachers.registry import family_of
from generate_pairs.teachers.published import TEACHERS

published, tile = TEACHERS[sys.argv[1]], torch.randn(2**20)
for role, file in zip(("transformer", "tokenizer"), sys.argv[2:]):
    part = getattr(published, role)
    with torch.device("meta"):
        network = getattr(family_of(published.family), role)(part.config)
    content = {
        name: tile.repeat(-(-tensor.numel() // len(tile)))[: tensor.numel()].reshape(tensor.shape).clone()
        for name, tensor in network.state_dict().items()
    }
    for key in reversed(part.containers[0]):
        content = {key: content}
    torch.save(content, file)
"""

MEASURE = r"""
import json, re, sys, time
from pathlib import Path
import torch
from generate_pairs.teachers.checkpoints import load_teacher
from generate_pairs.teachers.importing.import_teacher import import_teacher

def kilobytes(file, key):
    return int(re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self", file).read_text(), re.MULTILINE)[1])

torch.set_num_threads(1)
Path("/proc/self/clear_refs").write_text("5")
before, began = kilobytes("status", "VmRSS"), time.perf_counter()
name, *files = sys.argv[1:]
made = import_teacher(files, name) if files else load_teacher(name)
measured = {
    "peak": 1024 * (kilobytes("status", "VmHWM") - before),
    "anonymous": 1024 * kilobytes("smaps_rollup", "Pss_Anon"),
    "mapped": 1024 * kilobytes("smaps_rollup", "Pss_File"),
    "seconds": time.perf_counter() - began,
}
print(json.dumps(measured))
"""


def run(script: str, *arguments: object, home: Path) -> str:
    environment = {**os.environ, "TOKENLEAP_HOME": str(home)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("name", ["var-d16", "llamagen-b-256"])
def test_weights_are_in_memory_once(name: str, tmp_path: Path) -> None:
    files = [tmp_path / "transformer.pth", tmp_path / "tokenizer.pth"]
    run(MAKE, name, *files, home=tmp_path)
    size = {"import": sum(path.stat().st_size for path in files)}
    measured: dict[str, Any] = {"import": json.loads(run(MEASURE, name, *files, home=tmp_path))}
    for path in files:
        path.unlink()
    kept = tmp_path / "teachers" / f"{name}.safetensors"
    size["load"] = kept.stat().st_size
    measured["load"] = json.loads(run(MEASURE, name, home=tmp_path))
    kept.unlink()
    for work, numbers in measured.items():
        ratio = numbers["peak"] / size[work]
        print(f"{name} {work}: {ratio:.2f} x {size[work] / 1e9:.2f} GB", numbers)
    assert measured["load"]["peak"] <= 1.3 * size["load"]
    assert measured["load"]["peak"] > 0.9 * size["load"], "the weights were read"
    assert measured["import"]["peak"] <= 1.3 * size["import"]
