"""The training loop: pairs stream in, a student comes out, and any moment may be the last."""

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
from distill.training.checkpoint import (
    DamagedCheckpoint,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from distill.training.distributed import init_distributed
from distill.training.metrics import MetricsLog, newest_values, tensorboard
from distill.training.optimizers import learning_rate
from distill.training.precision import computing, determinism
from distill.training.preflight import refuse_training
from distill.training.state import Training
from generate_pairs.compute.threads import computing_threads
from shards.core.callbacks import Notify, Report, ShouldStop
from shards.core.errors import Failed, OtherStopped, Stopped
from shards.storage.files import refuse_unwritable
from shards.storage.paths import Location


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did; `metrics` are the last line of its log, and of several processes one `speaks`."""

    num_steps: int
    seconds: float
    metrics: Mapping[str, float]
    speaks: bool


@dataclass(frozen=True)
class EvalCallback:
    """Somebody who looks at a training on its way, without changing it.

    A look is followed by a checkpoint. One that was lost with the steps behind it is taken again, at the same state.

    Attributes:
        interval: steps between looks; the last step is looked at, too.
        run: what is called.
    """

    interval: int
    run: Callable[[Training], None]


def train(
    config: DistillConfig,
    teacher_name: str,
    pairs_root: Location,
    out: Path,
    *,
    size: int | None,
    report: Report,
    should_stop: ShouldStop,
    eval_callback: EvalCallback | None = None,
    notify: Notify = lambda _: None,
) -> TrainingSummary:
    """Train a student from pairs, from its last checkpoint if there is one, and export it.

    Where torchrun started several processes, each calls this alike and trains on its share of every batch.

    Args:
        config: stage two's settings.
        teacher_name: the teacher that made the pairs; gives the initial weights, the codebook and the decoder.
        pairs_root: the pair data set.
        out: folder of the export; checkpoints and the log lie in it too.
        size: how many training pairs, the first ones; None for all.
        report: called with (steps done, steps in all, the losses in words).
        should_stop: asked after every step; a checkpoint is written first.
        eval_callback: who looks at the student on its way; None for nobody.
        notify: hears of a broken checkpoint that an older one had to stand in for.

    Raises:
        Refused: before any work: settings that do not fit the teacher, pairs of another teacher, too few pairs, a
            folder that cannot be written to, a checkpoint of another training or of more steps, too little memory, a
            batch that the processes cannot share.
        Failed: a loss that is not finite, a damaged shard, another process that is gone.
        Stopped: `should_stop` said so, here or in another process.
    """
    began = time.monotonic()
    refuse_training(config, pairs_root, out, size)
    refuse_unwritable(out)
    # Each of the training's threads computes its own share of a batch; see distill/training/gradients.py.
    with (
        init_distributed(config.train.device) as world,
        computing_threads(1),
        determinism(config.train.deterministic),
    ):
        training = Training(config, teacher_name, pairs_root, size, world)
        _resume(training, out / "checkpoints", notify)
        wanted = config.train.tensorboard
        with closing(training.stream), tensorboard(out, training.step, wanted, world.is_main) as board:
            log = MetricsLog(out / "metrics", training.step, board)
            _training_loop(
                training, log, out, report if world.is_main else _silent, should_stop, eval_callback
            )
        if world.is_main:
            training.export(out)
        world.wait()
    metrics = log.last or newest_values(out / "metrics")
    return TrainingSummary(training.step, time.monotonic() - began, metrics, world.is_main)


def _training_loop(
    training: Training,
    log: MetricsLog,
    out: Path,
    report: Report,
    should_stop: ShouldStop,
    eval_callback: EvalCallback | None,
) -> None:
    """THE loop: update, log, look, checkpoint. All processes run it alike; the first one writes."""
    settings, world = training.config.train, training.world
    pace = Pace(training)
    report(training.step, settings.num_steps, "")
    while training.step < settings.num_steps:
        values = training.update()
        step, asked = training.step, should_stop()
        stop = world.any(asked)
        last = step == settings.num_steps
        if last or step % settings.log_interval == 0:
            log.add(step, learning_rate=learning_rate(step - 1, settings), **values, **pace())
            report(step, settings.num_steps, log.describe())
        watched = eval_callback is not None and (last or step % eval_callback.interval == 0)
        if eval_callback is not None and watched:
            eval_callback.run(training)
        due = last or step % settings.checkpoint_interval == 0
        if due and world.is_main:
            save_samples(training, out / "samples" / f"step-{step:06d}.png")
        # Not where a stop came in between: the log is that of a training which never was stopped, and who stops hurries.
        if due or watched:
            log.add(step, **training.eval_metrics())
        if (due or watched or stop) and world.is_main:
            log.commit(step)
            save_checkpoint(
                out / "checkpoints", training.checkpoint(), settings.kept_checkpoints, settings.keep_interval
            )
        if stop and not last:
            # Who leaves while the first one still writes would have torchrun end it.
            world.wait()
            kept = f"{step} of {settings.num_steps} steps are done and kept in {out / 'checkpoints'}"
            raise Stopped(kept) if asked else OtherStopped(kept)


def _resume(training: Training, folder: Path, notify: Notify) -> None:
    """Bring a training to its newest whole checkpoint, the one that the first process found.

    Raises:
        Refused: as `newest_checkpoint`.
        Failed: another process cannot read what the first one has read.
    """
    world, resumed = training.world, None
    if world.is_main:
        resumed = newest_checkpoint(folder, training.identity, training.config.train.num_steps)
    step = world.broadcast_from_zero(resumed.checkpoint.step if resumed else None)
    if step is None:
        return
    try:
        checkpoint = resumed.checkpoint if resumed else load_checkpoint(folder, step)
    except DamagedCheckpoint as error:
        raise Failed(
            f"process {world.rank} of {world.size} cannot read the checkpoint of step {step} that the first one has read "
            f"({error}): {folder} must lie where all processes see it"
        ) from error
    if resumed and resumed.broken:
        notify(f"{'; '.join(resumed.broken)}: going on from step {step:,} instead")
    training.restore(checkpoint)


def save_samples(training: Training, path: Path) -> None:
    """A grid of images from fixed noise, a row for each number of steps: the same noise and labels at every step."""
    with training.averaged() as student, computing(training.world.device, training.config.train.precision):
        columns, _ = grid_size(student.tokenizer.image_shape[-1])
        labels = np.arange(columns) % student.num_classes
        passes = range(1, len(student.timesteps) + 1)
        rows = {
            f"{count} step{'s' if count > 1 else ''}": torch.cat(
                [batch.images_BIHW for batch in sample_images(student, labels, 0, student.timesteps[:count])]
            )
            for count in passes
        }
    save_png(captioned_grid(rows), path)


class Pace:
    """What the machine does to a training, between one call and the next; time for looks and checkpoints aside."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.step, self.seconds, self.waited = training.step, training.seconds, training.waited_seconds

    def __call__(self) -> dict[str, float]:
        """Images per second of all processes, the share of this one's time that it waited for pairs, its peak memory."""
        now = self.training
        steps, seconds = now.step - self.step, now.seconds - self.seconds
        waited = now.waited_seconds - self.waited
        self.step, self.seconds, self.waited = now.step, now.seconds, now.waited_seconds
        return {
            "images_per_second": steps * now.config.train.batch_size / seconds,
            "data_wait": waited / seconds,
            "peak_memory_bytes": peak_memory(now.world.device),
        }


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of the GPU that it computes on, or of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _silent(done: int, total: int, note: str) -> None:
    """Where only one of several processes is to speak."""
