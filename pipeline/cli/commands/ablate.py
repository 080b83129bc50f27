"""`tokenleap ablate`: train students on several data set sizes and settings, and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.group import examples
from pipeline.cli.options import (
    FolderPath,
    captions_option,
    cluster_option,
    comma_separated,
    composed,
    dry_run_option,
    num_steps_option,
    number_option,
    pairs_option,
    preset_argument,
    set_option,
    tiny_random_option,
)

if TYPE_CHECKING:
    from pipeline.ablation.ablation import Ablation
    from pipeline.ablation.grid import Axes, Match
    from pipeline.config.run_config import RunConfig
    from shards.storage.paths import Location


@click.command(
    "ablate",
    epilog=examples(
        "tokenleap ablate digits --pairs pairs/digits --sizes 2500,5000,10000,20000 --seeds 2 --out ablations/digits",
        "tokenleap ablate digits --pairs pairs/digits --sizes 25%,50%,100% --timesteps 0,4 --timesteps 0,8 --out abl-t",
        "tokenleap ablate digits --pairs pairs/digits --sizes 10000 --grid train.learning_rate=3e-3,6e-3 --out abl-lr",
    ),
)
@preset_argument
@pairs_option
@click.option("--out", type=FolderPath, required=True, metavar="DIR", help="Folder of the ablation.")
@click.option(
    "--sizes", required=True, metavar="N,N", help="Numbers of training pairs, or fractions of the data set as 0.5 or 50%."
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
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="train.seed = 0 .. N-1.")
@click.option(
    "--match",
    type=click.Choice(["steps", "epochs"]),
    default="steps",
    show_default=True,
    help="Train all cells for equally many steps or epochs, as many as in the preset.",
)
@number_option("--every", metavar="K", text="Steps between evaluations during training.  [default: a tenth of the steps]")
@tiny_random_option
@captions_option
@num_steps_option
@number_option(
    "--workers",
    minimum=0,
    text="Cells trained in parallel on this machine, each in a process; 0 trains one after another in this process.  "
    "[default: cores divided by train.threads; 0 if that is 1]",
)
@cluster_option
@set_option
@dry_run_option
def command(
    pairs: Location,
    out: Path,
    sizes: str,
    timesteps: tuple[tuple[int, ...], ...],
    sweeps: tuple[str, ...],
    seeds: int,
    match: Match,
    every: int | None,
    workers: int | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a student for every size, and report how many pairs are enough.

    All cells of the grid use the existing pairs; a smaller size is the beginning of a larger one, and nothing is copied.
    Cells start from equal weights, read the pairs by the same rule and are evaluated from the same noise. Run the same
    command again to resume; added sizes, seeds or values train only the new cells.

    \b
    The folder contains:
      report.html, figures/, table.md, table.csv     the results
      ablation.parquet                               all measurements of all cells
      cells/*/                                       a run folder for each cell
    """
    base = composed(options)
    axes = _axes(base, pairs, sizes, seeds, timesteps, sweeps)
    ablation = _check_ablation(base, axes, pairs, out, match, every)
    if dry_run:
        _print_plan(ablation)
    else:
        _train_cells(ablation, workers)


def _axes(
    base: RunConfig,
    pairs: Location,
    sizes: str,
    seeds: int,
    timesteps: tuple[tuple[int, ...], ...],
    sweeps: tuple[str, ...],
) -> Axes:
    """Parse the axes of the grid."""
    from pipeline.ablation.grid import Axes, parse_sizes, parse_sweep
    from shards.core.errors import Refused
    from shards.dataset.manifest import Manifest

    swept: dict[str, tuple[object, ...]] = {}
    for key, values in map(parse_sweep, sweeps):
        if key in swept:
            raise Refused(f"--grid {key} is given twice: list all of its values in one option")
        swept[key] = values
    if base.evaluation.clip is not None:
        raise Refused(
            "evaluation.clip: an ablation does not use a CLIP model; `tokenleap evaluate CELL` scores one cell with it"
        )
    if len(set(timesteps)) < len(timesteps):
        raise Refused("--timesteps: a set is given twice; give each set once")
    return Axes(parse_sizes(sizes, Manifest.open(pairs).view().size), seeds, timesteps, swept)


def _check_ablation(base: RunConfig, axes: Axes, pairs: Location, out: Path, match: Match, every: int | None) -> Ablation:
    """Create the cells and check everything that can be refused before the work; writes nothing."""
    from pipeline.ablation.grid import make_cells

    # A cell is a run folder, and a command in another working folder may continue it.
    base = base.model_copy(update={"teacher": base.teacher.with_absolute_path()})
    cells = tuple(make_cells(base, axes, match))
    # Imported after the settings are checked, because torch takes seconds to load.
    from generate_pairs.generation.plan import refuse_other_pairs
    from generate_pairs.teachers.checkpoints import load_teacher
    from pipeline.ablation.ablation import Ablation, refuse_ablation

    loaded = load_teacher(base.teacher.name)
    refuse_other_pairs(base.generate, loaded, pairs)
    ablation = Ablation(out, pairs, base, cells, match, every)
    refuse_ablation(ablation, loaded)
    return ablation


def _print_plan(ablation: Ablation) -> None:
    from pipeline.ablation.cost import plan_lines
    from pipeline.config.run_config import dry_run_toml
    from pipeline.runtime.progress import progress

    click.echo(dry_run_toml(ablation.base))
    with progress("probe", "kinds of cells") as report:
        lines = plan_lines(ablation, report)
    click.echo("\n".join(lines))


def _train_cells(ablation: Ablation, workers: int | None) -> None:
    """Train the unfinished cells and print the conclusions."""
    from pipeline.ablation.conclusions import write_conclusions
    from pipeline.ablation.runner import run_ablation
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import stopping
    from shards.core.errors import Failed, join_first
    from shards.core.host import available_cores

    with stopping() as should_stop, progress("ablation", "steps") as report:
        parallel = available_cores() // ablation.base.train.threads
        failures = run_ablation(
            ablation,
            workers=workers if workers is not None else parallel if parallel > 1 else 0,
            report=report,
            should_stop=should_stop,
            notify=lambda sentence: click.echo(sentence, err=True),
        )
    click.echo("\n".join(write_conclusions(ablation, failures)))
    if failures:
        raise Failed(
            f"{len(failures)} of {len(ablation.cells)} cells failed: "
            f"{join_first([': '.join(failure) for failure in failures])}. "
            "The other cells are done; run the same command to retry the failed ones"
        )
