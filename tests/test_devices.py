"""Networks, losses, optimizers and sampling stay on their device, checked with a simulated device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration

HERE = Path(__file__).resolve().parent
COMPUTATIONS = ["walk", "decode", "adamw", "muon", "image loss", "two steps", "teacher in between"]


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot simulate a device",
)
@pytest.mark.parametrize("teacher", ["digits", pytest.param("digits-text", marks=pytest.mark.slow), "digits-var"])
def test_no_tensor_of_a_computation_stays_on_the_cpu(teacher: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(HERE / "pretended_device.py"), teacher],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout)
    assert "cpu and pretended:0" in results.pop("mixed on purpose")
    expected = COMPUTATIONS + ([] if teacher == "digits-text" else ["forced"])
    assert results == dict.fromkeys(expected)
