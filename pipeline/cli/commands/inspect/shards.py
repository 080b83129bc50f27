"""`tokenleap shards`: show, verify, repair, extend and export a pair data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.group import CommandGroup, examples
from pipeline.cli.options import (
    MAX_SEED,
    comma_separated,
    echo_generated,
    number_of_workers,
    number_option,
    output_option,
    pairs_argument,
    workers_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from shards.dataset.verify import Finding, Sample
    from shards.storage.paths import Location

DEFAULT_CLASSES = 10

teacher_option = click.option(
    "--teacher", metavar="NAME-OR-FILE", help="The teacher's current name or file.  [default: its recorded name]"
)


@click.group(
    "shards",
    cls=CommandGroup,
    epilog=examples(
        "tokenleap shards info runs/digits/pairs",
        "tokenleap shards verify runs/digits/pairs && echo intact",
        "tokenleap shards repair runs/digits/pairs",
        "tokenleap shards join s3://bucket/pairs",
        "tokenleap shards extend runs/digits/pairs --num-pairs 100000",
        "tokenleap shards preview runs/digits/pairs --out pairs.png",
    ),
)
def command() -> None:
    """Show, verify, repair, extend and export a pair data set."""


@command.command(
    "info",
    epilog=examples(
        "tokenleap shards info runs/digits/pairs",
    ),
)
@pairs_argument
def info(pairs: Location) -> None:
    """Show totals, classes, bytes, rate and lineage of the data set PAIRS."""
    facts = _facts(pairs)
    width = max(map(len, facts))
    click.echo("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


def _facts(pairs: Location) -> dict[str, object]:
    """The lines of `info`, by name."""
    from pipeline.report.terminal_summary import pairs_line
    from pipeline.run_folder.results import PairStatistics
    from shards.core.mismatch import flat
    from shards.core.units import format_bytes
    from shards.dataset.manifest import Manifest
    from shards.format.tar_layout import bytes_per_pair

    manifest = Manifest.open(pairs)
    spec, totals = manifest.spec, PairStatistics.of(manifest)
    fewest, most = totals.pairs_per_class
    per_label = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    labels: dict[str, object] = {"classes": spec.num_classes, "pairs/class": f"{per_label}, held-out ones included"}
    if spec.captions is not None:
        from generate_pairs.text.encoders import dataset_caption_features

        name, sha256 = spec.captions.get("name"), spec.captions["sha256"][:12]
        num_cut, max_tokens = dataset_caption_features(pairs, spec).num_cut(), spec.lineage["text_encoder"]["max_tokens"]
        count = "not counted at a URL" if num_cut is None else f"{num_cut:,} of the captions encoded so far"
        labels = {
            "captions": f"{spec.num_classes:,} from {name} ({sha256})",
            "pairs/caption": per_label,
            "cut": f"to {max_tokens} tokens: {count}",
        }
    return {
        "pairs": pairs_line(totals),
        "fingerprint": spec.fingerprint,
        **labels,
        "bytes": f"{totals.num_bytes:,} ({format_bytes(totals.num_bytes)}), {bytes_per_pair(spec):,} a pair",
        "rate": f"{totals.pairs_per_second:,.1f} pairs/s a worker, {totals.worker_seconds / 3600:,.3f} device-hours",
        "sequence": f"{spec.num_tokens} tokens in {len(spec.tokens_per_step)} AR steps",
        "codebook": f"{spec.vocab_size:,} rows of {spec.codebook_dim}",
        "noise": f"{spec.noise}, seed {spec.seed}",
        "made on": ", ".join([*totals.hosts, *totals.devices]) or "nothing yet",
        **flat(spec.lineage),
    }


@command.command(
    "verify",
    epilog=examples(
        "tokenleap shards verify runs/digits/pairs && echo intact",
        "tokenleap shards verify s3://bucket/pairs --sample 20",
    ),
)
@pairs_argument
@number_option(
    "--sample", "num_sampled", text="Read N random shards instead of all; every manifest row is still checked."
)
@number_option(
    "--seed",
    minimum=0,
    maximum=MAX_SEED,
    metavar="S",
    text="Seed of the choice of --sample.  [default: random; it is printed]",
)
@number_option("--workers", minimum=0, text="Processes that read; 0 reads in this process.  [default: one for each core]")
def verify(pairs: Location, num_sampled: int | None, seed: int | None, workers: int | None) -> None:
    """Read every byte of PAIRS and report damage.

    The exit code is 1 if PAIRS is damaged. A shard that was written but not committed is reported, but is no damage.
    """
    import secrets

    from shards.core.errors import Failed
    from shards.dataset.verify import Sample

    if seed is not None and num_sampled is None:
        raise click.UsageError("--seed chooses the shards of --sample: give both options or none")
    sample = None
    if num_sampled is not None:
        sample = Sample(num_sampled, secrets.randbelow(2**32) if seed is None else seed)
    findings = _findings(pairs, workers, sample)
    for finding in findings:
        prefix = "" if finding.where in finding.message else f"{finding.where}: "
        click.echo(f"{finding.kind}: {prefix}{finding.message}")
    checked = "every shard" if sample is None else f"every row, and every shard of a sample of {num_sampled},"
    options = "" if sample is None else f" (--sample {num_sampled} --seed {sample.seed})"
    damage = [finding for finding in findings if finding.kind != "uncommitted"]
    if damage:
        affects_all = any(finding.affects_all_pairs for finding in damage)
        first = "restore the common files of all pairs, then " if affects_all else ""
        raise Failed(
            f"{pairs} is damaged ({len(damage)} of the findings above){options}: {first}run "
            f"`tokenleap shards repair {pairs}`"
        )
    click.echo(f"{pairs}: {checked} is intact{options}")


def _findings(pairs: Location, workers: int | None, sample: Sample | None = None) -> list[Finding]:
    """Verify a data set, by default with one process for each core."""
    from pipeline.runtime.progress import progress
    from shards.core.host import available_cores
    from shards.dataset.verify import verify

    processes = available_cores() if workers is None else workers
    with progress("verify", "shards") as report:
        return verify(pairs, report, workers=processes, sample=sample)


@command.command(
    "repair",
    epilog=examples(
        "tokenleap shards repair runs/digits/pairs",
    ),
)
@pairs_argument
@teacher_option
@workers_option
def repair(pairs: Location, teacher: str | None, workers: int | None) -> None:
    """Generate missing and damaged shards again.

    They are generated with the recorded settings of PAIRS and must have the same teacher. With the same software and
    kind of device every byte is equal, which the hash in the manifest proves. Otherwise the number of tokens that differ
    from the readable old ones is printed, and the new shard gets its own manifest row.
    """
    from generate_pairs.generation.repair import repair as repair_shards
    from pipeline.report.terminal_summary import replacement_lines
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import stopping

    findings = _findings(pairs, workers)
    count = number_of_workers(workers)
    with stopping() as should_stop, progress("repair", "pairs") as report:
        summary = repair_shards(pairs, teacher, findings=findings, workers=count, report=report, should_stop=should_stop)
    click.echo("\n".join([*replacement_lines(summary.replaced), f"{pairs}: {summary.num_shards:,} shards repaired"]))


@command.command(
    "join",
    epilog=examples(
        "tokenleap shards join s3://bucket/pairs",
    ),
)
@pairs_argument
def join(pairs: Location) -> None:
    """Write all manifest rows of PAIRS into one file next to dataset.json.

    With this file a large data set opens faster. A web server, which cannot list a folder, needs it to serve a data set.
    `generate` and `repair` write it when the data set is complete.
    """
    from shards.dataset.manifest import join as join_rows
    from shards.dataset.manifest_row import JOINED_FILE

    joined = join_rows(pairs)
    click.echo(f"{joined.root / JOINED_FILE}: {len(joined.rows):,} shards")


@command.command(
    "extend",
    epilog=examples(
        "tokenleap shards extend runs/digits/pairs --num-pairs 200000",
    ),
)
@pairs_argument
@number_option("--num-pairs", required=True, text="Training pairs in total, rounded up to full shards.")
@teacher_option
@workers_option
def extend(pairs: Location, num_pairs: int, teacher: str | None, workers: int | None) -> None:
    """Generate more pairs with the recorded settings of PAIRS.

    The bytes are those of `tokenleap generate` with this number of pairs.
    """
    from generate_pairs.generation.repair import extend as extend_pairs
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import stopping

    count = number_of_workers(workers)
    with stopping() as should_stop, progress("pairs", "pairs") as report:
        summary = extend_pairs(pairs, num_pairs, teacher, workers=count, report=report, should_stop=should_stop)
    echo_generated(summary, pairs)


@command.command(
    "export",
    epilog=examples(
        "tokenleap shards export runs/digits/pairs --to pairs.parquet --size 1000",
    ),
)
@pairs_argument
@output_option(".parquet", "--to")
@number_option("--size", text="The first N training pairs.  [default: all of them]")
def export(pairs: Location, out: Path, size: int | None) -> None:
    """Write training pairs into one Parquet file, one row for each pair.

    Columns: pair_index, label, noise (float16 numbers as bytes), tokens (a list), and caption if the data set has
    captions. Held-out pairs are omitted. The file's metadata contains dataset.json, under onestep.dataset.
    """
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import all_or_nothing
    from shards.dataset.manifest import Manifest
    from shards.dataset.parquet_export import export_parquet

    with all_or_nothing(), progress("export", "shards") as report:
        view = export_parquet(Manifest.open(pairs), out, size, report)
    click.echo(f"{out}: {view.size:,} pairs, {out.stat().st_size:,} bytes")


@command.command(
    "preview",
    epilog=examples(
        "tokenleap shards preview runs/digits/pairs --out pairs.png",
    ),
)
@pairs_argument
@output_option(".png")
@click.option("--labels", callback=comma_separated, metavar="0,1,2", help="Classes, one a row.  [default: the first ten]")
@number_option("--columns", default=8, show_default=True, text="Pairs of each class.")
@teacher_option
def preview(pairs: Location, out: Path, labels: tuple[int, ...] | None, columns: int, teacher: str | None) -> None:
    """Draw the images of the first pairs of each class, one class a row."""
    from distill.images import save_png
    from generate_pairs.generation.repair import recorded_teacher
    from pipeline.pair_preview import preview_grid
    from shards.dataset.manifest import Manifest

    manifest = Manifest.open(pairs)
    _, loaded = recorded_teacher(pairs, manifest.spec, teacher, "preview")
    shown = labels or tuple(range(min(manifest.spec.num_classes, DEFAULT_CLASSES)))
    save_png(preview_grid(manifest, loaded.teacher.tokenizer, shown, columns), out)
    click.echo(f"{out}: {columns} pairs of each of {len(shown)} classes")
