"""`tokenleap ablate`: how many pairs are enough, and whatever else of stage two is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import (
    FolderPath,
    captions_option,
    cluster_option,
    comma_separated,
    dry_run_option,
    num_steps_option,
    overrides,
    pairs_option,
    preset_argument,
    set_option,
    tiny_random_option,
)

if TYPE_CHECKING:
    from pipeline.ablation.grid import Match
    from shards.storage.paths import Location


@click.command("ablate")
@preset_argument
@pairs_option
@click.option("--out", type=FolderPath, required=True, metavar="DIR", help="Folder of the ablation.")
@click.option(
    "--sizes", required=True, metavar="N,N", help="Training pairs: counts, or shares as 0.5 or 50%."
)
@click.option(
    "--timesteps",
    multiple=True,
    metavar="T,T",
    callback=lambda ctx, parameter, texts: tuple(comma_separated(ctx, parameter, text) for text in texts),
    help="A set of the student's timesteps; repeatable.  [default: the preset's]",
)
@click.option(
    "--grid",
    "sweeps",
    multiple=True,
    metavar="KEY=A,B",
    help="Sweep another key of stage two, as in train.learning_rate=1e-3,3e-3; repeatable.",
)
@click.option(
    "--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="train.seed = 0 .. N-1."
)
@click.option(
    "--match",
    type=click.Choice(["steps", "epochs"]),
    default="steps",
    show_default=True,
    help="What the cells have in common: updates, or passes over their pairs (as many as the preset's own).",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    metavar="K",
    help="Steps between points of a curve.  [default: a tenth]",
)
@tiny_random_option
@captions_option
@num_steps_option
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Cells trained side by side on this machine, each in a process; 0 trains one after another in this one.  "
    "[default: cores over train.threads; 0 where that is 1]",
)
@cluster_option
@set_option
@dry_run_option
def command(
    preset: str,
    pairs: Location,
    out: Path,
    sizes: str,
    timesteps: tuple[tuple[int, ...], ...],
    sweeps: tuple[str, ...],
    seeds: int,
    match: Match,
    every: int | None,
    tiny_random: bool,
    captions: str | None,
    num_steps: int | None,
    workers: int | None,
    cluster: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train a student for every size of the data set, and tell how many pairs are enough.

    All cells of the grid learn from the pairs that lie there, of which a smaller size is the beginning of a larger one;
    nothing is copied. They begin alike, meet the pairs by one rule and are judged from the same noise. The same command
    again goes on with what is not finished; added sizes, seeds or values train what is new.

    \b
    Examples:
      tokenleap ablate digits --pairs pairs/digits --sizes 2500,5000,10000,20000 --seeds 2 --out ablations/digits
      tokenleap ablate digits --pairs pairs/digits --sizes 25%,50%,100% --timesteps 0,4 --timesteps 0,8 --out ablations/t
      tokenleap ablate digits --pairs pairs/digits --sizes 10000 --grid train.learning_rate=3e-3,6e-3 --out ablations/lr

    \b
    The folder holds:
      report.html, figures/, table.md, table.csv     the answers
      ablation.parquet                               every number of every cell, at every point of its curve
      cells/*/                                       a run's folder for each cell
    """
    from pipeline.ablation.grid import Axes, make_cells, parse_sizes, parse_sweep
    from pipeline.config.run_config import compose, to_toml
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import stopping
    from shards.core.errors import Failed, Refused
    from shards.dataset.manifest import Manifest

    flags = {"captions.file": captions, "train.num_steps": num_steps, "cluster.scheduler": cluster}
    base = compose(preset, overrides(settings, flags), tiny_random=tiny_random)
    # A cell is a run's folder of its own, and may be gone on with from anywhere.
    base = base.model_copy(update={"teacher": base.teacher.with_absolute_path()})
    swept: dict[str, tuple[object, ...]] = {}
    for key, values in map(parse_sweep, sweeps):
        if key in swept:
            raise Refused(f"--grid {key} is given twice: name all of its values at once")
        swept[key] = values
    if base.evaluation.clip is not None:
        raise Refused(
            "evaluation.clip: cells are not judged by a CLIP; `tokenleap evaluate CELL` is, one by one"
        )
    if len(set(timesteps)) < len(timesteps):
        raise Refused("--timesteps names a set twice: each set makes its own cells")
    axes = Axes(parse_sizes(sizes, Manifest.open(pairs).view().size), seeds, timesteps, swept)
    cells = tuple(make_cells(base, axes, match))
    # Only now: torch takes seconds to load, and a mistyped setting should not wait for it.
    from generate_pairs.generation.plan import refuse_other_pairs
    from generate_pairs.generation.shard_jobs import join_first
    from generate_pairs.teachers.checkpoints import load_teacher
    from pipeline.ablation.ablation import Ablation, refuse_ablation
    from pipeline.ablation.conclusions import answer
    from pipeline.ablation.cost import plan_lines
    from pipeline.ablation.runner import run_ablation

    loaded = load_teacher(base.teacher.name)
    refuse_other_pairs(base.generate, loaded, pairs)
    ablation = Ablation(out, pairs, base, cells, match, every)
    refuse_ablation(ablation, loaded)
    if dry_run:
        click.echo(to_toml(base))
        with progress("probe", "kinds of cells") as report:
            lines = plan_lines(ablation, report)
        click.echo("\n".join(lines))
        return
    with stopping() as should_stop, progress("ablation", "steps") as report:
        failures = run_ablation(
            ablation,
            workers=_workers(workers, base.train.threads),
            report=report,
            should_stop=should_stop,
            notify=lambda sentence: click.echo(sentence, err=True),
        )
    click.echo("\n".join(answer(ablation, failures)))
    if failures:
        raise Failed(
            f"{len(failures)} of {len(cells)} cells failed: {join_first([': '.join(each) for each in failures])}. "
            "The others are done; the same command tries these again"
        )


def _workers(asked: int | None, threads: int) -> int:
    """As many trainings side by side as the cores have threads for; one alone needs no process of its own."""
    if asked is not None:
        return asked
    from shards.core.host import available_cores

    side_by_side = available_cores() // threads
    return side_by_side if side_by_side > 1 else 0
