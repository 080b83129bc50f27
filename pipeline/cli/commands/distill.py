"""`tokenleap distill`: stage two, the student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import (
    FolderPath,
    captions_option,
    dry_run_option,
    num_steps_option,
    overrides,
    pairs_option,
    preset_argument,
    set_option,
    tiny_random_option,
)

if TYPE_CHECKING:
    from shards.storage.paths import Location


@click.command("distill")
@preset_argument
@pairs_option
@click.option("--out", type=FolderPath, required=True, metavar="STUDENT", help="Folder of the student.")
@click.option(
    "--size", type=click.IntRange(min=1), metavar="N", help="Train on the first N pairs.  [default: all]"
)
@tiny_random_option
@captions_option
@num_steps_option
@click.option(
    "--device-batch-size",
    metavar="N|auto",
    help="Pairs that a device computes at once; short for --set train.device_batch_size=N.  [default: as many as fit]",
)
@click.option(
    "--print-job-script", is_flag=True, help="Print a Slurm job that trains, is requeued and goes on."
)
@click.option(
    "--nodes", type=click.IntRange(min=1), default=1, metavar="N", help="Of that job.  [default: 1]"
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="On each node, a GPU each.  [default: 1]",
)
@set_option
@dry_run_option
@click.pass_context
def command(
    ctx: click.Context,
    preset: str,
    pairs: Location,
    out: Path,
    size: int | None,
    tiny_random: bool,
    captions: str | None,
    num_steps: int | None,
    device_batch_size: str | None,
    print_job_script: bool,
    nodes: int,
    processes: int,
    settings: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train the student on a pair data set.

    The teacher and the pairs of PRESET must be those that PAIRS was made with. The same command again goes
    on from the last checkpoint; a larger --num-steps trains on.

    \b
    Examples:
      tokenleap distill digits --pairs pairs/digits --out students/digits
      tokenleap distill digits --pairs pairs/digits --out students/small --size 5000
      tokenleap distill var-d16 --tiny-random --pairs pairs/trial --out students/trial
      torchrun --nproc-per-node=8 --no-python tokenleap distill var-d16 --pairs pairs/d16 --out students/d16
      tokenleap distill var-d16 --pairs pairs/d16 --out students/d16 --processes 8 --print-job-script > job.sh
    """
    from pipeline.config.run_config import compose, to_toml
    from pipeline.runtime.progress import duration, notifier, progress
    from pipeline.runtime.signals import stopping
    from shards.core.errors import Refused
    from shards.dataset.manifest import Manifest

    flags = {
        "captions.file": captions,
        "train.num_steps": num_steps,
        "train.device_batch_size": device_batch_size,
    }
    config = compose(preset, overrides(settings, flags), tiny_random=tiny_random)
    if print_job_script:
        from pipeline.training_job import training_job

        click.echo(training_job(config.cluster, ctx.meta["tokenleap.command"], nodes, processes))
        return
    if (nodes, processes) != (1, 1):
        raise Refused(
            "--nodes and --processes are those of a Slurm job: give --print-job-script, or start several processes "
            f"here with: torchrun --nproc-per-node={processes} --no-python tokenleap distill ..."
        )
    view = Manifest.open(pairs).view(size)
    # Only now: torch takes seconds to load, and a mistyped setting should not wait for it.
    from distill.training.preflight import refuse_training, training_plan
    from distill.training.trainer import train
    from generate_pairs.generation.plan import refuse_other_pairs
    from generate_pairs.teachers.checkpoints import load_teacher

    loaded = load_teacher(config.teacher.name)
    refuse_other_pairs(config.generate, loaded, pairs)
    if dry_run:
        refuse_training(config.distill, pairs, out, size)
        click.echo(to_toml(config))
        click.echo("\n".join(training_plan(config.distill, view.size, loaded)))
        return
    del loaded
    with stopping() as should_stop, progress("student", "steps") as report:
        trained = train(
            config.distill,
            config.teacher.name,
            pairs,
            out,
            size=size,
            report=report,
            should_stop=should_stop,
            notify=notifier("student"),
        )
    if not trained.speaks:
        return
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in trained.metrics.items())
    outcome = f"{trained.num_steps:,} steps in {duration(trained.seconds)}"
    click.echo(f"{out}: {'; '.join(filter(None, [outcome, metrics]))}")
