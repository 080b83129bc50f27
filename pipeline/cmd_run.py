"""`onestep run`: pairs, student, evaluation and report in one folder."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import (
    FolderPath,
    dry_run_option,
    num_pairs_option,
    num_steps_option,
    number_of_workers,
    overrides,
    preset_argument,
    set_option,
    workers_option,
)


@click.command("run")
@preset_argument
@click.option("--out", type=FolderPath, metavar="RUN", help="Folder of the run.  [default: runs/PRESET]")
@num_pairs_option
@num_steps_option
@workers_option
@set_option
@dry_run_option
def command(
    preset: str,
    out: Path | None,
    num_pairs: int | None,
    num_steps: int | None,
    workers: int | None,
    settings: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Run both stages, judge the student and write a report.

    PRESET is a shipped preset (digits, digits-var) or a TOML file. What is finished is skipped and what was
    begun goes on, so the same command again is the way to resume.

    \b
    Examples:
      onestep run digits
      onestep run digits --out runs/wide --set student.timesteps=0,8 --set train.batch_size=256
      onestep run digits --num-steps 4000         go on with a finished run

    \b
    The folder holds:
      config.toml, environment.json     what was asked, and where it ran
      pairs/                            the pair data set
      student/                          the one-step generator
      evaluation.json, samples/         how good it is, and how it looks
      report.html                       all of it on one page
    """
    from pipeline.config import compose, preset_name, to_toml

    config = compose(
        preset, overrides(settings, {"pairs.num_pairs": num_pairs, "train.num_steps": num_steps})
    )
    # Only now: torch takes seconds to load, and a mistyped setting should not wait for it.
    from pipeline.run import plan, run

    out = out or Path("runs") / preset_name(preset)
    if dry_run:
        click.echo(to_toml(config))
        click.echo("\n".join(plan(config, out)))
        return
    click.echo("\n".join(run(config, out, workers=number_of_workers(workers))))
