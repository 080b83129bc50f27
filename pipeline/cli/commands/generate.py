"""`tokenleap generate`: stage one, the pair data set."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import (
    PairsPath,
    captions_option,
    cluster_option,
    dry_run_option,
    num_pairs_option,
    number_of_workers,
    overrides,
    preset_argument,
    set_option,
    tiny_random_option,
    workers_option,
)

if TYPE_CHECKING:
    from generate_pairs.generation.work_units import Task
    from pipeline.config.run_config import RunConfig
    from shards.storage.paths import Location


@click.command("generate")
@preset_argument
@click.option(
    "--out", type=PairsPath, required=True, metavar="PAIRS", help="Folder or URL of the pair data set."
)
@tiny_random_option
@captions_option
@num_pairs_option
@workers_option
@cluster_option
@click.option(
    "--print-job-script", is_flag=True, help="Print the job that --cluster slurm submits; submit nothing."
)
@click.option(
    "--task-index",
    type=click.IntRange(min=0),
    metavar="I",
    help="Make the shards of task I, counted from 0, only.",
)
@click.option(
    "--task-count", type=click.IntRange(min=1), metavar="N", help="How many tasks share the shards."
)
@click.option(
    "--time-limit", metavar="H:MM:SS", help="Begin no shard that would end later than this after the start."
)
@set_option
@dry_run_option
@click.option(
    "--probe",
    is_flag=True,
    help="Measure a few batches here, print pairs per second and device-hours to the end; make nothing.",
)
def command(
    preset: str,
    out: Location,
    tiny_random: bool,
    captions: str | None,
    num_pairs: int | None,
    workers: int | None,
    cluster: str | None,
    print_job_script: bool,
    task_index: int | None,
    task_count: int | None,
    time_limit: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
    probe: bool,
) -> None:
    """Make pairs of noise and the teacher's tokens for it.

    The same command again makes what is missing; a larger --num-pairs extends the data set and keeps every
    pair that is there.

    \b
    Examples:
      tokenleap generate digits --out pairs/digits
      tokenleap generate digits --out pairs/digits --num-pairs 50000 --workers 8
      tokenleap generate digits --out pairs/guided --set teacher.guidance_scale=3
      tokenleap generate var-d16 --tiny-random --out pairs/trial
      tokenleap generate llamagen-t2i --captions captions.parquet --out pairs/t2i
      tokenleap generate digits --out s3://bucket/pairs
      tokenleap generate digits --out pairs/digits --probe
      tokenleap generate var-d16 --out pairs/d16 --cluster slurm --set cluster.jobs=64 --set cluster.gpus=1
      tokenleap generate var-d16 --out pairs/d16 --task-index $SLURM_ARRAY_TASK_ID --task-count 64

    --workers are processes of this machine, and --cluster finds workers elsewhere. Tasks need neither: each makes
    its share in its own process. The pairs are the same, whoever makes them.
    """
    began = time.monotonic()
    if dry_run and probe:
        raise click.UsageError("--dry-run computes nothing and --probe measures: give one of them")
    from pipeline.config.run_config import as_text, compose, to_toml
    from pipeline.report.terminal_summary import pairs_line
    from pipeline.run_folder.results import PairStatistics
    from pipeline.runtime.progress import notifier, progress
    from pipeline.runtime.signals import stopping
    from shards.dataset.manifest import Manifest

    flags = {
        "captions.file": None if captions is None else as_text(captions),
        "pairs.num_pairs": num_pairs,
        "cluster.scheduler": cluster,
    }
    config = compose(preset, overrides(settings, flags), tiny_random=tiny_random)
    task = _task(config, task_index, task_count, workers)
    deadline = None if time_limit is None else began + _seconds(time_limit)
    if print_job_script:
        click.echo(_job_script(config, out))
        return
    # Only now: torch takes seconds to load, and a mistyped setting should not wait for it.
    from generate_pairs.generation.generate import generate
    from generate_pairs.generation.plan import plan_generation, refuse_fewer_pairs

    refuse_fewer_pairs(config.generate, out)
    if dry_run:
        click.echo(to_toml(config))
        click.echo("\n".join(plan_generation(config.generate, out).lines()))
        return
    if probe:
        from pipeline.cost_report import probe_lines

        with progress("probe", "batches") as report:
            lines = probe_lines(config.generate, plan_generation(config.generate, out), report)
        click.echo("\n".join(lines))
        return
    here = (
        0
        if task or config.cluster.scheduler != "local"
        else number_of_workers(workers, config.cluster.device)
    )
    with stopping() as should_stop, progress("pairs", "pairs") as report:
        made = generate(
            config.generate,
            out,
            workers=here,
            report=report,
            should_stop=should_stop,
            task=task,
            deadline=deadline,
            notify=notifier("pairs"),
        )
    click.echo(f"made {made.num_pairs:,} pairs, {made.pairs_per_second:,.1f} pairs/s")
    click.echo(f"{out}: {pairs_line(PairStatistics.of(Manifest.open(out)))}")


def _task(config: RunConfig, index: int | None, count: int | None, workers: int | None) -> Task | None:
    """What --task-index and --task-count say, and whether the rest agrees with it.

    Raises:
        Refused: options that exclude each other, or one that needs another.
    """
    from generate_pairs.generation.work_units import Task
    from shards.core.errors import Refused

    scheduler = config.cluster.scheduler
    if workers is not None and scheduler != "local":
        raise Refused(
            f"--workers are processes of this machine, and cluster.scheduler is {scheduler}: leave --workers out "
            "(Slurm's are cluster.jobs), or give --cluster local"
        )
    if index is None and count is None:
        return None
    if index is None or count is None:
        raise Refused(
            "--task-index and --task-count go together: this task's number, and how many tasks there are"
        )
    if index >= count:
        raise Refused(
            f"--task-index is {index} of --task-count {count}: tasks are counted from 0 to {count - 1}, "
            f"as in `sbatch --array=0-{count - 1}`"
        )
    if workers is not None or scheduler != "local":
        raise Refused(
            "a task makes its share in its own process: leave --workers out, and cluster.scheduler local"
        )
    return Task(index, count)


def _seconds(time_limit: str) -> int:
    """The seconds of --time-limit.

    Raises:
        Refused: it is no length of time.
    """
    import re

    from generate_pairs.config import WALLTIME, walltime_seconds
    from shards.core.errors import Refused

    if not re.match(WALLTIME, time_limit):
        raise Refused(f"--time-limit is {time_limit!r}: write H:MM:SS, as in 3:50:00, or D-H:MM:SS")
    return walltime_seconds(time_limit)


def _job_script(config: RunConfig, out: Location) -> str:
    """The Slurm job of --print-job-script.

    Raises:
        Refused: the cluster is another one.
    """
    from generate_pairs.cluster.slurm import job_script
    from shards.core.errors import Refused

    if config.cluster.scheduler != "slurm":
        raise Refused("--print-job-script shows a Slurm job: give --cluster slurm")
    return job_script(config.cluster.logging_into(out))
