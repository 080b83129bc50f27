"""Networks on the meta device: every tensor is there, and torch's compiler is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from generate_pairs.teachers.meta_device import on_meta_device

REPOSITORY = Path(__file__).parents[3]


def test_modules_are_on_the_meta_device_only_inside_the_block() -> None:
    with on_meta_device():
        modules = nn.ModuleList([nn.Embedding(3, 4), nn.Linear(3, 4), nn.Conv2d(3, 4, 3), nn.LayerNorm(3)])
        nn.init.trunc_normal_(nn.Parameter(torch.empty(3, 4)), std=0.02)
    assert {parameter.device.type for parameter in modules.parameters()} == {"meta"}
    outside = nn.Linear(3, 4)
    assert outside.weight.device.type == "cpu"
    nn.init.zeros_(outside.weight)
    assert not outside.weight.any()


def test_a_teacher_is_loaded_without_torchs_compiler() -> None:
    """Importing the compiler takes a second in every command and worker."""
    program = (
        "import sys; from generate_pairs.teachers.checkpoints import load_teacher; "
        "[load_teacher(name) for name in ('digits', 'digits-64', 'digits-var')]; print('torch._dynamo' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"
