"""`tokenleap run`: pairs, student, evaluation and report in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli.group import examples
from pipeline.cli.options import (
    FolderPath,
    captions_option,
    composed,
    dry_run_option,
    num_pairs_option,
    num_steps_option,
    number_of_workers,
    preset_argument,
    set_option,
    tiny_random_option,
    workers_option,
)


@click.command(
    "run",
    epilog=examples(
        "tokenleap run digits",
        "tokenleap run var-d16 --tiny-random           try a large preset, on any machine",
        "tokenleap run llamagen-t2i --captions captions.txt",
        "tokenleap run digits --out runs/wide --set student.timesteps=0,8 --set train.batch_size=256",
        "tokenleap run digits --num-steps 4000         continue a finished run",
    ),
)
@preset_argument
@click.option("--out", type=FolderPath, metavar="RUN", help="Folder of the run.  [default: runs/PRESET]")
@tiny_random_option
@captions_option
@num_pairs_option
@num_steps_option
@workers_option
@set_option
@dry_run_option
def command(out: Path | None, workers: int | None, dry_run: bool, **options: Any) -> None:
    """Run both stages, evaluate the student and write a report.

    PRESET is a TOML file or a shipped preset. The teachers of digits, digits-64, digits-text and digits-var are included.
    Those of var-d16, var-d20, var-d24, llamagen-b, llamagen-l, llamagen-t2i and llamagen-t2i-512 are imported with
    `teachers import`. Run the same command again to resume: finished work is skipped.

    \b
    The folder contains:
      config.toml, environment.json     the settings, and the software and machine
      pairs/                            the pair data set
      student/                          the one-step generator
      evaluation.json, samples/         scores and images
      report.html                       all results on one page
    """
    config = composed(options)
    # Imported after the settings are checked, because torch takes seconds to load.
    from pipeline.config.run_config import dry_run_toml, run_name
    from pipeline.run import plan, run

    out = out or Path("runs") / run_name(options["preset"], tiny_random=options["tiny_random"])
    if dry_run:
        click.echo(dry_run_toml(config))
        click.echo("\n".join(plan(config, out)))
        return
    click.echo("\n".join(run(config, out, workers=number_of_workers(workers, config.cluster.device))))
