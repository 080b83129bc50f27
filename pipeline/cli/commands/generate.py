"""`tokenleap generate`: stage one, generate a pair data set."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.group import examples
from pipeline.cli.options import (
    PairsPath,
    captions_option,
    cluster_option,
    composed,
    dry_run_option,
    echo_generated,
    num_pairs_option,
    number_of_workers,
    number_option,
    preset_argument,
    set_option,
    tiny_random_option,
    workers_option,
)

if TYPE_CHECKING:
    from generate_pairs.generation.work_units import Task
    from pipeline.config.run_config import RunConfig
    from shards.storage.paths import Location


@click.command(
    "generate",
    epilog=examples(
        "tokenleap generate digits --out pairs/digits",
        "tokenleap generate digits --out pairs/digits --num-pairs 50000 --workers 8",
        "tokenleap generate digits --out pairs/guided --set teacher.guidance_scale=3",
        "tokenleap generate var-d16 --tiny-random --out pairs/trial",
        "tokenleap generate llamagen-t2i --captions captions.parquet --out pairs/t2i",
        "tokenleap generate digits --out s3://bucket/pairs",
        "tokenleap generate digits --out pairs/digits --probe",
        "tokenleap generate var-d16 --out pairs/d16 --cluster slurm --set cluster.jobs=64 --set cluster.gpus=1",
        "tokenleap generate var-d16 --out pairs/d16 --task-index $SLURM_ARRAY_TASK_ID --task-count 64",
    ),
)
@preset_argument
@click.option("--out", type=PairsPath, required=True, metavar="PAIRS", help="Folder or URL of the pair data set.")
@tiny_random_option
@captions_option
@num_pairs_option
@workers_option
@cluster_option
@click.option("--print-job-script", is_flag=True, help="Print the job script of --cluster slurm; submit nothing.")
@number_option("--task-index", minimum=0, metavar="I", text="Generate only the shards of task I, counted from 0.")
@number_option("--task-count", text="Number of tasks that share the shards.")
@click.option("--time-limit", metavar="H:MM:SS", help="Start no shard that would end after this time.")
@set_option
@dry_run_option
@click.option(
    "--probe",
    is_flag=True,
    help="Measure a few batches on this machine and print pairs per second and remaining device-hours; write no pairs.",
)
def command(
    out: Location,
    workers: int | None,
    print_job_script: bool,
    task_index: int | None,
    task_count: int | None,
    time_limit: str | None,
    dry_run: bool,
    probe: bool,
    **options: Any,
) -> None:
    """Generate pairs of noise and the teacher's tokens for this noise.

    Run the same command again to generate missing pairs; a larger --num-pairs extends the data set and keeps
    all existing pairs.

    --workers starts processes on this machine, --cluster uses workers on others. A task needs neither: it generates
    its shards in its own process. The pairs are the same in all cases.
    """
    started = time.monotonic()
    if dry_run and probe:
        raise click.UsageError("--dry-run computes nothing and --probe measures: give one of them")
    config = composed(options)
    task = _task(config, task_index, task_count, workers)
    deadline = None if time_limit is None else started + _seconds(time_limit)
    if print_job_script:
        from generate_pairs.cluster.slurm import job_script
        from shards.core.errors import Refused

        if config.cluster.scheduler != "slurm":
            raise Refused("--print-job-script prints a Slurm job: give --cluster slurm")
        click.echo(job_script(config.cluster.with_log_folder(out)))
    elif dry_run or probe:
        _print_plan(config, out, probe)
    else:
        _generate(config, out, workers, task, deadline)


def _print_plan(config: RunConfig, out: Location, probe: bool) -> None:
    """Print the configuration and the plan or, with `probe`, a measured rate."""
    from generate_pairs.generation.plan import plan_generation, refuse_fewer_pairs
    from pipeline.config.run_config import dry_run_toml
    from pipeline.runtime.progress import progress

    refuse_fewer_pairs(config.generate, out)
    if probe:
        from pipeline.cost_report import probe_lines

        with progress("probe", "batches") as report:
            lines = probe_lines(config.generate, plan_generation(config.generate, out), report)
    else:
        lines = [dry_run_toml(config), *plan_generation(config.generate, out).lines()]
    click.echo("\n".join(lines))


def _generate(config: RunConfig, out: Location, workers: int | None, task: Task | None, deadline: float | None) -> None:
    """Generate the missing pairs and print totals."""
    # Imported after the settings are checked, because torch takes seconds to load.
    from generate_pairs.generation.generate import generate
    from generate_pairs.generation.plan import refuse_fewer_pairs
    from pipeline.runtime.progress import notifier, progress
    from pipeline.runtime.signals import stopping

    refuse_fewer_pairs(config.generate, out)
    in_this_process = task is not None or config.cluster.scheduler != "local"
    with stopping() as should_stop, progress("pairs", "pairs") as report:
        summary = generate(
            config.generate,
            out,
            workers=0 if in_this_process else number_of_workers(workers, config.cluster.device),
            report=report,
            should_stop=should_stop,
            task=task,
            deadline=deadline,
            notify=notifier("pairs"),
        )
    echo_generated(summary, out)


def _task(config: RunConfig, index: int | None, count: int | None, workers: int | None) -> Task | None:
    """The task of --task-index and --task-count; None without these options."""
    from generate_pairs.generation.work_units import Task
    from shards.core.errors import Refused

    scheduler = config.cluster.scheduler
    if workers is not None and scheduler != "local":
        raise Refused(
            f"--workers starts processes on this machine, and cluster.scheduler is {scheduler}: leave --workers out "
            "(for Slurm set cluster.jobs), or give --cluster local"
        )
    if index is None and count is None:
        return None
    if index is None or count is None:
        raise Refused("--task-index and --task-count: give both, this task's index and the number of tasks")
    if index >= count:
        raise Refused(
            f"--task-index is {index}, --task-count {count}: the index is 0 to {count - 1}, "
            f"as in `sbatch --array=0-{count - 1}`"
        )
    if workers is not None or scheduler != "local":
        raise Refused(
            "--task-index: a task generates its shards in its own process; leave --workers out, and cluster.scheduler "
            "must be local"
        )
    return Task(index, count)


def _seconds(time_limit: str) -> int:
    import re

    from generate_pairs.config import WALLTIME, walltime_seconds
    from shards.core.errors import Refused

    if not re.match(WALLTIME, time_limit):
        raise Refused(f"--time-limit is {time_limit!r}: write H:MM:SS, as in 3:50:00, or D-H:MM:SS")
    return walltime_seconds(time_limit)
