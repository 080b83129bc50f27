"""`tokenleap shards`: look at a pair data set, check it, mend it, enlarge it, take pairs out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import MAX_SEED, comma_separated, number_of_workers, pairs_argument, workers_option

DEFAULT_CLASSES = 10

teacher_option = click.option(
    "--teacher", metavar="NAME-OR-FILE", help="Where the teacher is now.  [default: the name it had then]"
)

if TYPE_CHECKING:
    from shards.storage.paths import Location


@click.group("shards")
def command() -> None:
    """Look at a pair data set, check it, mend it, enlarge it, take pairs out of it.

    \b
    Examples:
      tokenleap shards info runs/digits/pairs
      tokenleap shards verify runs/digits/pairs && echo sound
      tokenleap shards repair runs/digits/pairs
      tokenleap shards join s3://bucket/pairs
      tokenleap shards extend runs/digits/pairs --num-pairs 100000
      tokenleap shards preview runs/digits/pairs --out pairs.png
    """


@command.command("info")
@pairs_argument
def info(pairs: Location) -> None:
    """Show totals, classes, bytes, rate and lineage of the data set PAIRS."""
    from pipeline.report.terminal_summary import pairs_line
    from pipeline.run_folder.results import PairStatistics
    from shards.core.mismatch import flat
    from shards.dataset.manifest import Manifest
    from shards.format.tar_layout import bytes_per_pair

    manifest = Manifest.open(pairs)
    spec, totals = manifest.spec, PairStatistics.of(manifest)
    fewest, most = totals.pairs_per_class
    each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    labels: dict[str, object] = {"classes": spec.num_classes, "pairs/class": each}
    if spec.captions is not None:
        from generate_pairs.text.encoders import texts_of_pairs

        sha256 = spec.captions["sha256"][:12]
        cut, most = texts_of_pairs(pairs, spec).num_cut(), spec.lineage["text_encoder"]["max_tokens"]
        labels = {
            "captions": f"{spec.num_classes:,} from {spec.captions.get('name')} ({sha256})",
            "pairs/caption": each,
            "cut": f"to {most} tokens: {'not counted at a URL' if cut is None else f'{cut:,} of those encoded so far'}",
        }
    facts = {
        "pairs": pairs_line(totals),
        "fingerprint": spec.fingerprint,
        **labels,
        "bytes": f"{totals.num_bytes:,}, {bytes_per_pair(spec):,} a pair",
        "rate": f"{totals.pairs_per_second:,.1f} pairs/s a worker, {totals.worker_seconds / 3600:,.3f} device-hours",
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
@click.option(
    "--sample",
    "num_sampled",
    type=click.IntRange(min=1),
    metavar="N",
    help="Read N shards instead of all; rows are all looked at.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    metavar="S",
    help="Which shards --sample reads.  [default: others every time; it is printed]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Processes that read; 0 reads in this one.  [default: one for every core]",
)
def verify(pairs: Location, num_sampled: int | None, seed: int | None, workers: int | None) -> None:
    """Read every byte and name what is wrong.

    Exit code 1 if anything in PAIRS is. A shard whose writer was stopped before it was committed is told,
    too, but is no damage.
    """
    import secrets

    from pipeline.runtime.progress import progress
    from shards.core.errors import Failed
    from shards.core.host import available_cores
    from shards.dataset.verify import Sample
    from shards.dataset.verify import verify as findings_of

    if seed is not None and num_sampled is None:
        raise click.UsageError("--seed says which shards --sample reads: give both, or neither")
    sample = None
    if num_sampled is not None:
        sample = Sample(num_sampled, secrets.randbelow(2**32) if seed is None else seed)
    with progress("verify", "shards") as report:
        findings = findings_of(
            pairs, report, workers=available_cores() if workers is None else workers, sample=sample
        )
    for finding in findings:
        told = finding.message if finding.where in finding.message else f"{finding.where}: {finding.message}"
        click.echo(f"{finding.kind}: {told}")
    read = "every shard" if sample is None else f"every row, and every shard of a sample of {num_sampled},"
    seeded = "" if sample is None else f" (--sample {num_sampled} --seed {sample.seed})"
    damage = [finding for finding in findings if finding.kind != "uncommitted"]
    if damage:
        first = (
            ", once what every pair is made from is back" if any(x.is_of_every_pair for x in damage) else ""
        )
        raise Failed(
            f"{pairs} is damaged ({len(damage)} of the findings above){seeded}; `tokenleap shards repair {pairs}` "
            f"mends it{first}"
        )
    click.echo(f"{pairs}: {read} is whole{seeded}")


@command.command("repair")
@pairs_argument
@teacher_option
@workers_option
def repair(pairs: Location, teacher: str | None, workers: int | None) -> None:
    """Make missing and broken shards again.

    They are made from the settings that PAIRS was made with. The teacher must be the same one; on the same
    software and kind of device every byte comes out as it was, which the manifest's hash proves. Elsewhere it is
    told how many tokens differ from those that can still be read, and the new shard gets a row of its own.
    """
    from generate_pairs.generation.repair import repair as make_again
    from pipeline.report.terminal_summary import replacement_lines
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import stopping
    from shards.core.host import available_cores
    from shards.dataset.verify import verify as findings_of

    with progress("verify", "shards") as report:
        findings = findings_of(pairs, report, workers=available_cores() if workers is None else workers)
    with stopping() as should_stop, progress("repair", "pairs") as report:
        made = make_again(
            pairs,
            teacher,
            findings=findings,
            workers=number_of_workers(workers),
            report=report,
            should_stop=should_stop,
        )
    for line in replacement_lines(made.replaced):
        click.echo(line)
    click.echo(f"{pairs}: {made.num_shards:,} shards made again")


@command.command("join")
@pairs_argument
def join(pairs: Location) -> None:
    """Write all manifest rows of PAIRS into one file beside dataset.json.

    That file opens a large data set faster, and is what a web server, which lists no folder, needs to serve one.
    `generate` and `repair` write it when every shard is there.
    """
    from shards.dataset.manifest import join as join_rows
    from shards.dataset.manifest_row import JOINED_FILE

    joined = join_rows(pairs)
    click.echo(f"{joined.root / JOINED_FILE}: {len(joined.rows):,} shards")


@command.command("extend")
@pairs_argument
@click.option(
    "--num-pairs",
    type=click.IntRange(min=1),
    required=True,
    metavar="N",
    help="Training pairs that there shall be, rounded up to full shards.",
)
@teacher_option
@workers_option
def extend(pairs: Location, num_pairs: int, teacher: str | None, workers: int | None) -> None:
    """Make more pairs, with the settings that PAIRS was made with.

    The bytes are those of `tokenleap generate` with this number of pairs.
    """
    from generate_pairs.generation.repair import extend as make_more
    from pipeline.report.terminal_summary import pairs_line
    from pipeline.run_folder.results import PairStatistics
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import stopping
    from shards.dataset.manifest import Manifest

    with stopping() as should_stop, progress("pairs", "pairs") as report:
        made = make_more(
            pairs,
            num_pairs,
            teacher,
            workers=number_of_workers(workers),
            report=report,
            should_stop=should_stop,
        )
    click.echo(f"made {made.num_pairs:,} pairs, {made.pairs_per_second:,.1f} pairs/s")
    click.echo(f"{pairs}: {pairs_line(PairStatistics.of(Manifest.open(pairs)))}")


@command.command("export")
@pairs_argument
@click.option(
    "--to",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="A name that ends in .parquet.",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="N",
    help="The first N training pairs.  [default: all of them]",
)
def export(pairs: Location, out: Path, size: int | None) -> None:
    """Write training pairs into one Parquet file, a row a pair.

    Columns: pair_index, label, noise (float16 numbers as bytes), tokens (a list), and caption where there are captions.
    The held-out pairs stay out.
    What dataset.json says stands in the file's metadata, under onestep.dataset.
    """
    if out.suffix != ".parquet":
        raise click.BadParameter(f"{out} must end in .parquet", param_hint="--to")
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import all_or_nothing
    from shards.dataset.manifest import Manifest
    from shards.dataset.parquet_export import export_parquet

    with all_or_nothing(), progress("export", "shards") as report:
        view = export_parquet(Manifest.open(pairs), out, size, report)
    click.echo(f"{out}: {view.size:,} pairs, {out.stat().st_size:,} bytes")


@command.command("preview")
@pairs_argument
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="A name that ends in .png.",
)
@click.option(
    "--labels",
    callback=comma_separated,
    metavar="0,1,2",
    help="Classes, one a row.  [default: the first ten]",
)
@click.option(
    "--columns",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Pairs of each class.",
)
@teacher_option
def preview(
    pairs: Location, out: Path, labels: tuple[int, ...] | None, columns: int, teacher: str | None
) -> None:
    """Draw the images that pairs stand for: the first ones of each class, one class a row."""
    if out.suffix != ".png":
        raise click.BadParameter(f"{out} must end in .png", param_hint="--out")
    from distill.images import save_png
    from generate_pairs.generation.repair import recorded_teacher
    from pipeline.pair_preview import preview_grid
    from shards.dataset.manifest import Manifest

    manifest = Manifest.open(pairs)
    _, loaded = recorded_teacher(pairs, manifest.spec, teacher, "preview")
    shown = labels or tuple(range(min(manifest.spec.num_classes, DEFAULT_CLASSES)))
    save_png(preview_grid(manifest, loaded.teacher.tokenizer, shown, columns), out)
    click.echo(f"{out}: {columns} pairs of each of {len(shown)} classes")
