"""The training loop: pairs stream in, a student comes out, and any moment may be the last."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.checkpoint import newest_checkpoint, save_checkpoint
from distill.config import DistillConfig
from distill.metrics import MetricsLog
from distill.optimizer import learning_rate
from distill.training import Training
from shards.errors import Stopped

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did; `metrics` are the last line of its log."""

    num_steps: int
    seconds: float
    metrics: Mapping[str, float]


def train(
    config: DistillConfig,
    teacher_name: str,
    pairs_root: Path,
    out: Path,
    *,
    size: int | None,
    report: Report,
    should_stop: Callable[[], bool],
) -> TrainingSummary:
    """Train a student from pairs, from its last checkpoint if there is one, and export it.

    Args:
        config: stage two's settings.
        teacher_name: the teacher that made the pairs; gives the initial weights, the codebook and the decoder.
        pairs_root: the pair data set.
        out: folder of the export; checkpoints and the log lie in it too.
        size: how many training pairs, the first ones; None for all.
        report: called with (steps done, steps in all, the losses in words).
        should_stop: asked after every step; a checkpoint is written first.

    Raises:
        Refused: pairs of another teacher, too few pairs, a checkpoint of another training.
        Failed: a loss that is not finite, a damaged shard.
        Stopped: `should_stop` said so.
    """
    torch.set_num_threads(config.train.threads)
    began, settings = time.monotonic(), config.train
    training = Training(config, teacher_name, pairs_root, size)
    resumed = newest_checkpoint(out / "checkpoints", training.identity)
    if resumed is not None:
        training.restore(resumed)
    log = MetricsLog(out / "metrics", training.step)
    while training.step < settings.num_steps:
        values = training.update()
        step, stop = training.step, should_stop()
        last = step == settings.num_steps
        if last or step % settings.log_interval == 0:
            log.add(step, learning_rate=learning_rate(step - 1, settings), **values)
            report(step, settings.num_steps, log.in_words())
        if last or stop or step % settings.checkpoint_interval == 0:
            log.add(step, **training.heldout_metrics())
            log.commit(step)
            save_checkpoint(out / "checkpoints", training.checkpoint())
        if stop and not last:
            raise Stopped(f"{step} of {settings.num_steps} steps are done and kept in {out / 'checkpoints'}")
    training.export(out)
    return TrainingSummary(training.step, time.monotonic() - began, log.last)


def training_plan(config: DistillConfig, size: int) -> list[str]:
    """What a training would do, in words."""
    train = config.train
    return [
        f"a student at timesteps {list(config.student.timesteps)}, split {config.student.split}",
        f"{train.num_steps:,} steps of {train.batch_size:,} pairs: "
        f"{train.num_steps * train.batch_size / size:.1f} epochs of {size:,} pairs",
    ]
