"""`onestep generate`: stage one, the pair data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.options import (
    PairsPath,
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
    from shards.locations import Location


@click.command("generate")
@preset_argument
@click.option(
    "--out", type=PairsPath, required=True, metavar="PAIRS", help="Folder or URL of the pair data set."
)
@tiny_random_option
@num_pairs_option
@workers_option
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
    num_pairs: int | None,
    workers: int | None,
    settings: tuple[str, ...],
    dry_run: bool,
    probe: bool,
) -> None:
    """Make pairs of noise and the teacher's tokens for it.

    The same command again makes what is missing; a larger --num-pairs extends the data set and keeps every
    pair that is there.

    \b
    Examples:
      onestep generate digits --out pairs/digits
      onestep generate digits --out pairs/digits --num-pairs 50000 --workers 8
      onestep generate digits --out pairs/guided --set teacher.guidance_scale=3
      onestep generate var-d16 --tiny-random --out pairs/trial
      onestep generate digits --out s3://bucket/pairs
      onestep generate digits --out pairs/digits --probe
    """
    if dry_run and probe:
        raise click.UsageError("--dry-run computes nothing and --probe measures: give one of them")
    from pipeline.config import compose, to_toml
    from pipeline.progress import progress
    from pipeline.results import PairStatistics
    from pipeline.signals import stopping
    from pipeline.summary import pairs_line
    from shards.manifest import Manifest

    config = compose(preset, overrides(settings, {"pairs.num_pairs": num_pairs}), tiny_random=tiny_random)
    # Only now: torch takes seconds to load, and a mistyped setting should not wait for it.
    from generate_pairs.driver import generate, plan_generation, refuse_fewer_pairs

    refuse_fewer_pairs(config.generate, out)
    if dry_run:
        click.echo(to_toml(config))
        click.echo("\n".join(plan_generation(config.generate, out).lines()))
        return
    if probe:
        from pipeline.forecast import probe_lines

        with progress("probe", "batches") as report:
            lines = probe_lines(config.generate, plan_generation(config.generate, out), report)
        click.echo("\n".join(lines))
        return
    with stopping() as should_stop, progress("pairs", "pairs") as report:
        made = generate(
            config.generate, out, workers=number_of_workers(workers), report=report, should_stop=should_stop
        )
    click.echo(f"made {made.num_pairs_made:,} pairs, {made.pairs_per_second:,.1f} pairs/s")
    click.echo(f"{out}: {pairs_line(PairStatistics.of(Manifest.open(out)))}")
