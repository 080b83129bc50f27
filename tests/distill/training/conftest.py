"""Functions that train a student on the session's pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from distill.config import DistillConfig
from distill.training.trainer import TrainingSummary, train

TRAIN = {"num_steps": 12, "batch_size": 24, "warmup_steps": 2, "checkpoint_interval": 4, "log_interval": 2}
WEIGHTS = {"embedding_weight": 0.1, "image_weight": 0.1}


@pytest.fixture(scope="session")
def distill_config() -> Callable[..., DistillConfig]:
    """Makes settings of a brief training, with changed ones of [train] and, in `student`, of [student]."""

    def make(*, student: Mapping[str, object] | None = None, **settings: object) -> DistillConfig:
        return DistillConfig.model_validate(
            {
                "student": {"timesteps": [0, 2], "split": 3, **(student or {})},
                "train": {**TRAIN, **WEIGHTS, **settings},
            }
        )

    return make


@pytest.fixture(scope="session")
def run(
    teacher_path: Path, pairs_root: Path, distill_config: Callable[..., DistillConfig]
) -> Callable[..., TrainingSummary]:
    """Trains on 96 pairs into a folder, with changed settings; stops after `stop_after` steps of this call."""

    def train_on_pairs(
        out: Path,
        *,
        stop_after: int = 0,
        pairs: Path = pairs_root,
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> TrainingSummary:
        calls = count(1)
        arguments = {
            "size": 96,
            "report": lambda *_: None,
            "should_stop": lambda: next(calls) == stop_after,
            **(options or {}),
        }
        return train(distill_config(**settings), str(teacher_path), pairs, out, **arguments)

    return train_on_pairs
