"""`tokenleap plan`: what a pair data set would cost, before there is anything of it."""

from __future__ import annotations

import click

from pipeline.cli.options import num_pairs_option, overrides, preset_argument, set_option, tiny_random_option

DEVICES = ("a100", "h100", "h200", "cpu")


@click.command("plan")
@preset_argument
@tiny_random_option
@num_pairs_option
@click.option(
    "--device",
    "devices",
    type=click.Choice(DEVICES),
    multiple=True,
    help="Estimate for this device; repeatable. cpu is this machine's, measured in a second.  [default: all]",
)
@set_option
def command(
    preset: str,
    tiny_random: bool,
    num_pairs: int | None,
    devices: tuple[str, ...],
    settings: tuple[str, ...],
) -> None:
    """Tell what pairs cost: shards, bytes, pairs per second, device-hours.

    Speeds are those of stored probes (`tokenleap generate PRESET --out PAIRS --probe`) of the same settings, and
    estimates from the teacher's architecture, which are marked so. The teacher need not be here; nothing is written.

    \b
    Examples:
      tokenleap plan var-d16 --num-pairs 1200000
      tokenleap plan digits --device cpu
    """
    from pipeline.config.run_config import compose

    config = compose(preset, overrides(settings, {"pairs.num_pairs": num_pairs}), tiny_random=tiny_random)
    # Only now: torch takes seconds to load, and a mistyped setting should not wait for it.
    from pipeline.cost_report import plan_lines

    click.echo("\n".join(plan_lines(config.generate, devices or DEVICES)))
