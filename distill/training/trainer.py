"""The training loop: trains a student on streamed pairs, resumes after a stop at any time, and exports it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill.config import DistillConfig
from distill.images import captioned_grid, grid_size, save_png
from distill.student.sampler import sample_images
from distill.training.checkpoint import DamagedCheckpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from distill.training.distributed import init_distributed
from distill.training.metrics import MetricsLog, newest_values, tensorboard
from distill.training.optimizers import learning_rate
from distill.training.precision import autocast_for, deterministic_kernels
from distill.training.preflight import refuse_training
from distill.training.state import Training
from generate_pairs.compute.threads import computing_threads
from generate_pairs.teachers.checkpoints import LoadedTeacher
from shards.core.callbacks import Notify, Report, ShouldStop
from shards.core.errors import Failed, OtherStopped, Stopped
from shards.storage.files import refuse_unwritable
from shards.storage.paths import Location


@dataclass(frozen=True)
class TrainingSummary:
    """The result of a training: steps in total and of this call, its seconds, the last value of each metric, and whether
    this is rank 0."""

    num_steps: int
    num_new_steps: int
    seconds: float
    metrics: Mapping[str, float]
    is_main: bool


@dataclass(frozen=True)
class EvalCallback:
    """Read-only callback that runs every `interval` steps and at the last step, followed by a checkpoint.

    If an evaluation is lost together with its checkpoint, the resumed training repeats it in the same state.
    """

    interval: int
    evaluate: Callable[[Training], None]


def train(
    config: DistillConfig,
    teacher: str | LoadedTeacher,
    pairs_root: Location,
    out: Path,
    *,
    size: int | None,
    report: Report,
    should_stop: ShouldStop,
    eval_callback: EvalCallback | None = None,
    notify: Notify = lambda _: None,
) -> TrainingSummary:
    """Train a student on pairs, from its last checkpoint if there is one, and export it.

    Each process that torchrun starts calls this with the same arguments and computes a share of every batch.

    Args:
        teacher: The teacher that generated the pairs, its name or its file; it provides initial weights, codebook and
            decoder.
        out: Folder of the export, the checkpoints and the metrics.
        size: Number of training pairs, the first ones; None for all.
        report: Called with (steps done, total steps, description of the losses).
        should_stop: Checked after every step; if True, a checkpoint is written and the training stops.
        notify: Called with a message if a damaged checkpoint is skipped.

    Raises:
        Refused: Before any work: settings that do not fit the teacher, pairs of another teacher, too few pairs, an
            unwritable folder, a checkpoint of another training or of more steps, too little memory, a batch that the
            processes cannot share equally.
        Failed: A loss is not finite, a shard is damaged, or another process has ended.
        Stopped: `should_stop` returned True in this or another process.
    """
    started = time.monotonic()
    manifest = refuse_training(config, pairs_root, out, size)
    refuse_unwritable(out)
    # Each training thread computes its own share of a batch; see distill/training/gradients.py.
    with (
        init_distributed(config.train.device) as world,
        computing_threads(1),
        deterministic_kernels(config.train.deterministic),
    ):
        training = Training(config, teacher, manifest, size, world)
        _resume(training, out / "checkpoints", notify)
        first = training.step
        enabled = config.train.tensorboard
        with closing(training.stream), tensorboard(out, training.step, enabled, world.is_main) as board:
            log = MetricsLog(out / "metrics", training.step, board)
            report = report if world.is_main else lambda *_: None
            _training_loop(training, log, out, report, should_stop, eval_callback)
        if world.is_main:
            training.export(out)
        world.barrier()
    metrics = log.last or newest_values(out / "metrics")
    return TrainingSummary(training.step, training.step - first, time.monotonic() - started, metrics, world.is_main)


def _training_loop(
    training: Training,
    log: MetricsLog,
    out: Path,
    report: Report,
    should_stop: ShouldStop,
    eval_callback: EvalCallback | None,
) -> None:
    """Update, log, evaluate and checkpoint until the last step or a stop.

    All processes run this loop; only rank 0 writes files.
    """
    settings, world = training.config.train, training.world
    num_steps, checkpoints = settings.num_steps, out / "checkpoints"
    throughput = Throughput(training)
    report(training.step, num_steps, "")
    while training.step < num_steps:
        losses = training.update()
        step, stop_here = training.step, should_stop()
        stop = world.any_rank(stop_here)
        is_last = step == num_steps

        if is_last or step % settings.log_interval == 0:
            log.add(step, learning_rate=learning_rate(step - 1, settings), **losses, **throughput())
            report(step, num_steps, log.describe())

        evaluate = None
        if eval_callback is not None and (is_last or step % eval_callback.interval == 0):
            evaluate = eval_callback.evaluate
            evaluate(training)

        checkpoint_due = is_last or step % settings.checkpoint_interval == 0
        if checkpoint_due and world.is_main:
            save_sample_grid(training, out / "samples" / f"step-{step:06d}.png")
        # Skip these metrics when stopping early: the log must equal that of an uninterrupted run, and stopping should be
        # quick.
        if checkpoint_due or evaluate:
            log.add(step, **training.eval_metrics())
        if (checkpoint_due or evaluate or stop) and world.is_main:
            log.commit(step)
            save_checkpoint(checkpoints, training.checkpoint(), settings.kept_checkpoints, settings.keep_interval)

        if stop and not is_last:
            # Wait for rank 0 to finish writing: if any rank exits earlier, torchrun kills the others.
            world.barrier()
            message = f"{step} of {num_steps} steps are done and kept in {checkpoints}"
            raise Stopped(message) if stop_here else OtherStopped(message)


def _resume(training: Training, folder: Path, notify: Notify) -> None:
    """Restore the newest intact checkpoint that rank 0 finds.

    Raises:
        Refused: As `newest_checkpoint`.
        Failed: This process cannot read a checkpoint that rank 0 has read.
    """
    world, newest = training.world, None
    if world.is_main:
        newest = newest_checkpoint(folder, training.identity, training.config.train.num_steps)
    step = world.broadcast_from_zero(newest[0].step if newest else None)
    if step is None:
        return
    try:
        checkpoint, damaged = newest or (load_checkpoint(folder, step), ())
    except DamagedCheckpoint as error:
        raise Failed(
            f"process {world.rank} of {world.size} cannot read the checkpoint of step {step}, which process 0 has read "
            f"({error}): store {folder} where all processes can read it"
        ) from error
    if damaged:
        notify(f"{'; '.join(damaged)}: resuming from step {step:,} instead")
    training.restore(checkpoint)


def save_sample_grid(training: Training, path: Path) -> None:
    """Write a grid with one row for each number of sampling steps; noise and labels are the same in every grid."""
    precision = training.config.train.precision
    with training.averaged_weights() as student, autocast_for(training.world.device, precision):
        columns, _ = grid_size(student.tokenizer.image_shape[-1])
        labels = np.arange(columns) % student.num_classes
        rows = {}
        for count in range(1, len(student.timesteps) + 1):
            batches = sample_images(student, labels, 0, student.timesteps[:count])
            name = f"{count} step{'s' if count > 1 else ''}"
            rows[name] = torch.cat([batch.images_BIHW for batch in batches])
    save_png(captioned_grid(rows), path)


class Throughput:
    """Measures a training between two calls; the time of evaluations and checkpoints does not count."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.last = training.step, training.seconds, training.waited_seconds

    def __call__(self) -> dict[str, float]:
        """Images per second of all processes, and this process's fraction of time waiting for pairs and peak memory."""
        training, last = self.training, self.last
        self.last = training.step, training.seconds, training.waited_seconds
        steps, seconds, waited = (now - before for now, before in zip(self.last, last, strict=True))
        if training.world.device.type == "cuda":
            peak_memory = torch.cuda.max_memory_allocated(training.world.device)
        else:
            # Linux reports KiB, macOS bytes.
            unit = 1 if sys.platform == "darwin" else 1024
            peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {
            "images_per_second": steps * training.config.train.batch_size / seconds,
            "data_wait": waited / seconds,
            "peak_memory_bytes": peak_memory,
        }
