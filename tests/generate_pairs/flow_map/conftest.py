"""Fixtures for the flow map: the reference solver, and rows similar to those of a teacher."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

LogProbs = Callable[[int, int, float, float, int], Tensor]


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The module reference_solver.py in this folder."""
    path = Path(__file__).with_name("reference_solver.py")
    spec = importlib.util.spec_from_file_location("reference_solver", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def log_probs_of_perplexity() -> LogProbs:
    """(rows, V, lowest, highest, seed) -> Gaussian logits whose perplexity is log-uniform between the two."""

    def make(num_rows: int, vocab_size: int, lowest: float, highest: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(num_rows, vocab_size, generator=generator)
        share = torch.rand(num_rows, 1, generator=generator)
        entropy = math.log(lowest) + share * (math.log(highest) - math.log(lowest))
        low, high = torch.zeros(num_rows, 1), torch.full((num_rows, 1), 100.0)
        for _ in range(30):
            middle = (low + high) / 2
            log_p = torch.log_softmax(middle * logits, dim=1)
            too_flat = -(log_p.exp() * log_p).sum(dim=1, keepdim=True) > entropy
            low, high = torch.where(too_flat, middle, low), torch.where(too_flat, high, middle)
        return torch.log_softmax(low * logits, dim=1)

    return make
