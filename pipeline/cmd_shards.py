"""`onestep shards`: look at a pair data set, check it, mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.options import number_of_workers, pairs_argument, workers_option

if TYPE_CHECKING:
    from shards.locations import Location


@click.group("shards")
def command() -> None:
    """Look at a pair data set, check it, mend it.

    \b
    Examples:
      onestep shards info runs/digits/pairs
      onestep shards verify runs/digits/pairs && echo sound
      onestep shards repair runs/digits/pairs
      onestep shards join s3://bucket/pairs
    """


@command.command("info")
@pairs_argument
def info(pairs: Location) -> None:
    """Show totals, lineage and rate of the data set PAIRS."""
    from pipeline.results import PairStatistics
    from pipeline.summary import pairs_line
    from shards.dotted import flat
    from shards.manifest import Manifest

    manifest = Manifest.open(pairs)
    spec, totals = manifest.spec, PairStatistics.of(manifest)
    facts = {
        "pairs": pairs_line(totals),
        "fingerprint": spec.fingerprint,
        "classes": spec.num_classes,
        "sequence": f"{spec.num_tokens} tokens in {len(spec.tokens_per_step)} AR steps",
        "codebook": f"{spec.vocab_size:,} rows of {spec.codebook_dim}",
        "noise": f"{spec.noise}, seed {spec.seed}",
        "made on": ", ".join([*totals.hosts, *totals.devices]) or "nothing yet",
        **flat(spec.lineage),
    }
    width = max(map(len, facts))
    click.echo("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


@command.command("verify")
@pairs_argument
def verify(pairs: Location) -> None:
    """Read every byte and name what is wrong.

    Exit code 1 if anything in PAIRS is. A shard whose writer was stopped before it was committed is told,
    too, but is no damage.
    """
    from pipeline.progress import progress
    from shards.errors import Failed
    from shards.verify import verify as findings_of

    with progress("verify", "shards") as report:
        findings = findings_of(pairs, report)
    for finding in findings:
        told = finding.message if finding.where in finding.message else f"{finding.where}: {finding.message}"
        click.echo(f"{finding.kind}: {told}")
    damage = [finding for finding in findings if finding.kind != "uncommitted"]
    if damage:
        raise Failed(
            f"{pairs} is damaged ({len(damage)} of the findings above); `onestep shards repair {pairs}` mends it"
        )
    click.echo(f"{pairs}: every shard is whole")


@command.command("repair")
@pairs_argument
@click.option(
    "--teacher", metavar="NAME-OR-FILE", help="Where the teacher is now.  [default: the name it had then]"
)
@workers_option
def repair(pairs: Location, teacher: str | None, workers: int | None) -> None:
    """Make missing and broken shards again.

    They are made from the settings that PAIRS was made with. The teacher must be the same one; on the same
    software and kind of device every byte comes out as it was.
    """
    from generate_pairs.driver import repair as make_again
    from pipeline.progress import progress
    from pipeline.signals import stopping
    from shards.verify import verify as findings_of

    with progress("verify", "shards") as report:
        findings = findings_of(pairs, report)
    with stopping() as should_stop, progress("repair", "pairs") as report:
        made = make_again(
            pairs,
            teacher,
            findings=findings,
            workers=number_of_workers(workers),
            report=report,
            should_stop=should_stop,
        )
    click.echo(f"{pairs}: {made.num_shards_made:,} shards made again")


@command.command("join")
@pairs_argument
def join(pairs: Location) -> None:
    """Write all manifest rows of PAIRS into one file beside dataset.json.

    That file opens a large data set faster, and is what a web server, which lists no folder, needs to serve one.
    `generate` and `repair` write it when every shard is there.
    """
    from shards.manifest import join as join_rows
    from shards.rows import JOINED_FILE

    joined = join_rows(pairs)
    click.echo(f"{joined.root / JOINED_FILE}: {len(joined.rows):,} shards")
