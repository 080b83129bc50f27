"""`onestep distill`: stage two, the student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import (
    FolderPath,
    dry_run_option,
    num_steps_option,
    overrides,
    pairs_option,
    preset_argument,
    set_option,
    tiny_random_option,
)

if TYPE_CHECKING:
    from shards.locations import Location


@click.command("distill")
@preset_argument
@pairs_option
@click.option("--out", type=FolderPath, required=True, metavar="STUDENT", help="Folder of the student.")
@click.option(
    "--size", type=click.IntRange(min=1), metavar="N", help="Train on the first N pairs.  [default: all]"
)
@tiny_random_option
@num_steps_option
@set_option
@dry_run_option
def command(
    preset: str,
    pairs: Location,
    out: Path,
    size: int | None,
    tiny_random: bool,
    num_steps: int | None,
    settings: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train the student on a pair data set.

    The teacher and the pairs of PRESET must be those that PAIRS was made with. The same command again goes
    on from the last checkpoint; a larger --num-steps trains on.

    \b
    Examples:
      onestep distill digits --pairs pairs/digits --out students/digits
      onestep distill digits --pairs pairs/digits --out students/small --size 5000
      onestep distill var-d16 --tiny-random --pairs pairs/trial --out students/trial
    """
    from pipeline.config import compose, to_toml
    from pipeline.progress import duration, progress
    from pipeline.signals import stopping
    from shards.manifest import Manifest, refuse_other_spec

    config = compose(preset, overrides(settings, {"train.num_steps": num_steps}), tiny_random=tiny_random)
    view = Manifest.open(pairs).view(size)
    # Only now: torch takes seconds to load, and a mistyped setting should not wait for it.
    from distill.trainer import refuse_training, train, training_plan
    from generate_pairs.driver import pair_spec
    from generate_pairs.teachers.checkpoints import load_teacher

    refuse_other_spec(pairs, pair_spec(config.generate, load_teacher(config.teacher.name)))
    if dry_run:
        refuse_training(config.distill, pairs, out, size)
        click.echo(to_toml(config))
        click.echo("\n".join(training_plan(config.distill, view.size)))
        return
    with stopping() as should_stop, progress("student", "steps") as report:
        trained = train(
            config.distill, config.teacher.name, pairs, out, size=size, report=report, should_stop=should_stop
        )
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in trained.metrics.items())
    outcome = f"{trained.num_steps:,} steps in {duration(trained.seconds)}"
    click.echo(f"{out}: {'; '.join(filter(None, [outcome, metrics]))}")
