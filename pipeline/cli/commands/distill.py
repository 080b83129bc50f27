"""`tokenleap distill`: stage two, train a student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.group import examples
from pipeline.cli.options import (
    FolderPath,
    captions_option,
    composed,
    dry_run_option,
    num_steps_option,
    number_option,
    pairs_option,
    preset_argument,
    set_option,
    tiny_random_option,
)

if TYPE_CHECKING:
    from pipeline.config.run_config import RunConfig
    from shards.storage.paths import Location

OUTCOME = {
    "loss": "loss",
    "heldout_token_loss": "held-out cross-entropy (nats a token)",
    "heldout_token_match": "held-out token match",
}
"""Metrics that a finished training prints, with their names."""


@click.command(
    "distill",
    epilog=examples(
        "tokenleap distill digits --pairs pairs/digits --out students/digits",
        "tokenleap distill digits --pairs pairs/digits --out students/small --size 5000",
        "tokenleap distill var-d16 --tiny-random --pairs pairs/trial --out students/trial",
        "torchrun --nproc-per-node=8 --no-python tokenleap distill var-d16 --pairs pairs/d16 --out students/d16",
        "tokenleap distill var-d16 --pairs pairs/d16 --out students/d16 --processes 8 --print-job-script > job.sh",
    ),
)
@preset_argument
@pairs_option
@click.option("--out", type=FolderPath, required=True, metavar="STUDENT", help="Folder of the student.")
@number_option("--size", text="Train on the first N pairs.  [default: all]")
@tiny_random_option
@captions_option
@num_steps_option
@click.option(
    "--device-batch-size",
    metavar="N|auto",
    help="Pairs per device in one forward pass; short for --set train.device_batch_size=N.  [default: as many as fit]",
)
@click.option("--print-job-script", is_flag=True, help="Print a Slurm job that trains, and resumes after a requeue.")
@number_option("--nodes", default=1, text="Nodes of that job.  [default: 1]")
@number_option("--processes", default=1, text="Processes on each node, one GPU each.  [default: 1]")
@set_option
@dry_run_option
@click.pass_context
def command(
    ctx: click.Context,
    pairs: Location,
    out: Path,
    size: int | None,
    print_job_script: bool,
    nodes: int,
    processes: int,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train the student on a pair data set.

    PAIRS must have been generated with the teacher and the pair settings of PRESET. Run the same command again to resume
    from the last checkpoint; a larger --num-steps continues a finished training.
    """
    config = composed(options)
    if print_job_script:
        from pipeline.training_job import training_job

        click.echo(training_job(config.cluster, ctx.meta["tokenleap.command"], nodes, processes))
        return
    if (nodes, processes) != (1, 1):
        from shards.core.errors import Refused

        raise Refused(
            "--nodes and --processes are options of a Slurm job: give --print-job-script, or start several processes on "
            f"this machine with: torchrun --nproc-per-node={processes} --no-python tokenleap distill ..."
        )
    _distill(config, pairs, out, size, dry_run)


def _distill(config: RunConfig, pairs: Location, out: Path, size: int | None, dry_run: bool) -> None:
    """Train the student and print the outcome, or only print the plan."""
    from shards.dataset.manifest import Manifest

    view = Manifest.open(pairs).view(size)
    # Imported after the settings are checked, because torch takes seconds to load.
    from distill.training.metrics import overfitting_gap
    from distill.training.preflight import refuse_training, training_plan
    from distill.training.trainer import train
    from generate_pairs.generation.plan import refuse_other_pairs
    from generate_pairs.teachers.checkpoints import load_teacher
    from pipeline.config.run_config import dry_run_toml
    from pipeline.runtime.progress import duration, notifier, progress
    from pipeline.runtime.signals import stopping

    loaded = load_teacher(config.teacher.name)
    refuse_other_pairs(config.generate, loaded, pairs)
    if dry_run:
        refuse_training(config.distill, pairs, out, size)
        click.echo(dry_run_toml(config))
        click.echo("\n".join(training_plan(config.distill, view.size, loaded)))
        return
    with stopping() as should_stop, progress("student", "steps") as report:
        trained = train(
            config.distill,
            loaded,
            pairs,
            out,
            size=size,
            report=report,
            should_stop=should_stop,
            notify=notifier("student"),
        )
    if trained.is_main:
        outcome = f"{trained.num_steps:,} steps are done, {trained.num_new_steps:,} of them now"
        metrics = trained.metrics
        values = [f"{text} {metrics[name]:.4g}" for name, text in OUTCOME.items() if name in metrics]
        if "heldout_token_loss" in metrics:
            gap = overfitting_gap(metrics["heldout_token_loss"], metrics["train_token_loss"])
            values.append(f"overfitting gap {gap:+.3f}")
        click.echo(f"{out}: {', '.join([f'{outcome} in {duration(trained.seconds)}', *values])}")
