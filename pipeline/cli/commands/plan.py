"""`tokenleap plan`: the cost of a pair data set before it is generated."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.group import examples
from pipeline.cli.options import composed, num_pairs_option, preset_argument, set_option, tiny_random_option

DEVICES = ("a100", "h100", "h200", "cpu")


@click.command(
    "plan",
    epilog=examples(
        "tokenleap plan var-d16 --num-pairs 1200000",
        "tokenleap plan digits --device cpu",
    ),
)
@preset_argument
@tiny_random_option
@num_pairs_option
@click.option(
    "--device",
    "devices",
    type=click.Choice(DEVICES),
    multiple=True,
    help="Estimate for this device; repeatable. cpu is this machine's, measured within a second.  [default: all]",
)
@set_option
def command(devices: tuple[str, ...], **options: Any) -> None:
    """Print what a pair data set costs: shards, bytes, rates, device-hours.

    Rates come from stored probes of the same settings (`tokenleap generate PRESET --out PAIRS --probe`), and from
    estimates by the teacher's architecture, which are marked as such. The teacher's file is not needed, and nothing is
    written.
    """
    config = composed(options)
    # Imported after the settings are checked, because torch takes seconds to load.
    from pipeline.cost_report import plan_lines

    click.echo("\n".join(plan_lines(config.generate, devices or DEVICES)))
