"""The training loop: pairs stream in, a student comes out, and any moment may be the last."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from distill.checkpoint import newest_checkpoint, refuse_other_training, save_checkpoint
from distill.checks import check_distillation
from distill.config import DistillConfig
from distill.metrics import MetricsLog, newest_values
from distill.optimizer import learning_rate
from distill.student import student_of
from distill.training import Training, training_identity
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.threads import computing_threads
from shards.errors import Stopped
from shards.locations import Location
from shards.manifest import Manifest
from shards.reporting import Report, ShouldStop
from shards.storage import commit_bytes, remove


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did; `metrics` are the last line of its log."""

    num_steps: int
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Watch:
    """Somebody who looks at a training on its way, without changing it.

    A look is followed by a checkpoint. One that was lost with the steps behind it is taken again, at the same state.

    Attributes:
        interval: steps between looks; the last step is looked at, too.
        look: what is called.
    """

    interval: int
    look: Callable[[Training], None]


def train(
    config: DistillConfig,
    teacher_name: str,
    pairs_root: Location,
    out: Path,
    *,
    size: int | None,
    report: Report,
    should_stop: ShouldStop,
    watch: Watch | None = None,
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
        watch: who looks at the student on its way; None for nobody.

    Raises:
        Refused: before any work: settings that do not fit the teacher, pairs of another teacher, too few pairs, a
            folder that cannot be written to, a checkpoint of another training or of more steps.
        Failed: a loss that is not finite, a damaged shard.
        Stopped: `should_stop` said so.
    """
    began = time.monotonic()
    refuse_training(config, pairs_root, out, size)
    refuse_unwritable(out)
    # Each of the training's threads computes its own share of a batch; see distill/gradients.py.
    with computing_threads(1):
        training = Training(config, teacher_name, pairs_root, size)
        with closing(training.stream):
            log = _train_to_the_end(training, out, report, should_stop, watch)
        training.export(out)
    metrics = log.last or newest_values(out / "metrics")
    return TrainingSummary(training.step, time.monotonic() - began, metrics)


def _train_to_the_end(
    training: Training, out: Path, report: Report, should_stop: ShouldStop, watch: Watch | None
) -> MetricsLog:
    """THE loop: update, log, look, checkpoint."""
    settings = training.config.train
    resumed = newest_checkpoint(out / "checkpoints", training.identity, settings.num_steps)
    if resumed is not None:
        training.restore(resumed)
    log = MetricsLog(out / "metrics", training.step)
    report(training.step, settings.num_steps, "")
    while training.step < settings.num_steps:
        values = training.update()
        step, stop = training.step, should_stop()
        last = step == settings.num_steps
        if last or step % settings.log_interval == 0:
            log.add(step, learning_rate=learning_rate(step - 1, settings), **values)
            report(step, settings.num_steps, log.in_words())
        watched = watch is not None and (last or step % watch.interval == 0)
        if watch is not None and watched:
            watch.look(training)
        if last or stop or watched or step % settings.checkpoint_interval == 0:
            log.add(step, **training.heldout_metrics())
            log.commit(step)
            save_checkpoint(out / "checkpoints", training.checkpoint())
        if stop and not last:
            raise Stopped(f"{step} of {settings.num_steps} steps are done and kept in {out / 'checkpoints'}")
    return log


def refuse_training(config: DistillConfig, pairs_root: Location, out: Path, size: int | None) -> None:
    """Refuse what cannot be trained, from the files alone: loads no teacher, writes nothing.

    Raises:
        Refused: settings that do not fit the teacher, too few pairs, a checkpoint of another training or of more
            steps.
    """
    manifest = Manifest.open(pairs_root)
    check_distillation(config, TokenLayout(manifest.spec.tokens_per_step), manifest.spec.num_heldout)
    student_of(manifest.spec.lineage["teacher"]["family"])
    identity = training_identity(config, manifest.view(size))
    refuse_other_training(out / "checkpoints", identity, config.train.num_steps)


def refuse_unwritable(folder: Path) -> None:
    """Find out that a folder cannot be written to before there is anything to write.

    Raises:
        Refused: nothing can be put there.
        Failed: the disk is full.
    """
    probe = folder / ".probe"
    commit_bytes(probe, b"")
    remove(probe)


def training_plan(config: DistillConfig, size: int) -> list[str]:
    """What a training would do, in words."""
    train = config.train
    return [
        f"a student at timesteps {list(config.student.timesteps)}, split {config.student.split}",
        f"{train.num_steps:,} steps of {train.batch_size:,} pairs: "
        f"{train.num_steps * train.batch_size / size:.1f} epochs of {size:,} pairs",
    ]
