"""`tokenleap sample`: generate images with a student or its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.group import examples
from pipeline.cli.options import MAX_SEED, StudentPath, comma_separated, dry_run_option, number_option, weights

if TYPE_CHECKING:
    from distill.sampling.job import SamplingJob

LabelCycle = tuple[tuple[int, ...], int | None]
"""Labels to use in turn, and images of each of them; None for the default."""
OUTPUTS = "a .png name gets one grid, a .npz name the ADM evaluator's file, a name without suffix a folder of images"


def label_cycle(ctx: click.Context, parameter: click.Parameter, text: str | None) -> LabelCycle | None:
    """A click callback that parses `0,5` or `@FILE` with one label a line, of which each is one image."""
    if text is None:
        return None
    if not text.startswith("@"):
        return comma_separated(ctx, parameter, text) or (), None
    path = Path(text[1:])
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"cannot read {path}: {error}") from error
    try:
        labels = tuple(map(int, lines))
    except ValueError as error:
        raise click.BadParameter(f"{path} is not one whole number a line: {error}") from error
    if not labels:
        raise click.BadParameter(f"{path} is empty: give one whole number a line")
    return labels, 1


@click.command(
    "sample",
    epilog=examples(
        "tokenleap sample runs/digits/student --out digits.png",
        "tokenleap sample runs/digits/student --steps 2 --labels 3,7 --num-images 64 --out threes-and-sevens.png",
        "tokenleap sample runs/digits/student --timesteps 0,8 --num-images 1000 --out images",
        "tokenleap sample runs/digits/student --method pre-trained-5-9 --num-images 50000 --out digits.npz",
        'tokenleap sample runs/digits-text/student --prompt "a three" --prompt "the sum of one and two" --out threes.png',
    ),
)
@click.argument("student", type=StudentPath)
@number_option("--steps", metavar="K", text="Passes of the student.  [default: 1]")
@click.option("--timesteps", callback=comma_separated, metavar="0,5", help="Timesteps of the passes, instead of --steps.")
@click.option(
    "--method",
    metavar="M",
    help="Method, instead of both: student-K, pre-trained-N-M, pre-trained-N-M-flow, teacher or teacher-flow.",
)
@click.option(
    "--teacher", metavar="NAME", help="Name or file of the student's teacher, if it differs from the recorded name."
)
@click.option(
    "--labels",
    callback=label_cycle,
    metavar="0,1,2",
    help="Classes, or indices of captions, used in turn; @FILE contains one a line.  [default: the first ten classes, "
    "or all with --num-images; all captions]",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="A caption for a text-conditional student; repeatable, used in turn.",
)
@click.option(
    "--captions",
    metavar="FILE",
    help="Captions from a file: text with one a line, .jsonl or .parquet; or digits, the included ones.",
)
@click.option("--column", metavar="NAME", help="Column of the captions in a .jsonl or .parquet FILE.  [default: caption]")
@click.option(
    "--text-encoder", metavar="NAME", help="Name or location of the text encoder, if it differs from the recorded one."
)
@number_option(
    "--num-images",
    text="Images in total; may grow.  [default: 8 of each label; one for each line of a FILE]",
)
@number_option(
    "--seed", minimum=0, maximum=MAX_SEED, default=0, show_default=True, metavar="S", text="Seed of noise and draws."
)
@click.option(
    "--noise-weight",
    callback=weights,
    metavar="W",
    help="Weight of a position's own noise in the choice of its token, or W,W for each timestep; 0 is the official "
    "sampler.  [default: the student's]",
)
@number_option(
    "--batch-size",
    metavar="B",
    text="Images in one batch; it changes images only by rounding.  [default: 250, fewer for large images]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to compute on.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE-OR-DIR",
    help=f"{OUTPUTS[0].upper()}{OUTPUTS[1:]}.",
)
@dry_run_option
def command(dry_run: bool, **options: Any) -> None:
    """Generate images with a student, alone or with its teacher in between.

    STUDENT is the folder of an exported student, as in runs/digits/student, or hf://OWNER/REPOSITORY[@REVISION].
    If a folder or .npz is incomplete, run the same command again to resume.
    """
    if sum(options[name] is not None for name in ("steps", "timesteps", "method")) > 1:
        raise click.UsageError("--steps, --timesteps and --method all select the method: give one of them")
    out = options["out"]
    if out.suffix not in ("", ".png", ".npz"):
        raise click.BadParameter(f"{out} ends in {out.suffix}: {OUTPUTS}", param_hint="--out")
    if out.suffix and out.is_dir():
        raise click.BadParameter(f"{out} is a folder: {OUTPUTS}", param_hint="--out")
    if isinstance(options["student"], Path):
        from distill.student.export import refuse_missing_export

        refuse_missing_export(options["student"])
    from distill.sampling.job import resolve_job
    from distill.sampling.options import SampleOptions

    job = resolve_job(SampleOptions(**options))
    if untrained := job.method.untrained_timesteps(job.student):
        trained, others = (",".join(map(str, numbers)) for numbers in (job.student.timesteps, untrained))
        click.echo(f"note: this student was trained at timesteps {trained}, not at {others}", err=True)
    if job.store.is_complete and not dry_run:
        # The images of an .npz may not be joined yet.
        job.store.finish(job.labels_N)
        click.echo(f"{job.options.out}: all {len(job.labels_N):,} images exist already")
    else:
        _sample(job, dry_run)


def _sample(job: SamplingJob, dry_run: bool) -> None:
    """Generate the missing images, or only print the plan."""
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import stopping

    # Also in a dry run, which must refuse a missing teacher.
    teacher = job.load_teacher()
    if dry_run:
        click.echo("\n".join(job.describe()))
        return
    out = job.options.out
    # Before `stopping`: a signal ends a download at once.
    generate = job.load(teacher)
    with stopping(resumable=out.suffix != ".png") as should_stop, progress("images", "images") as report:
        job.run(generate, report, should_stop)
    click.echo(f"{out}: {len(job.labels_N):,} images, {job.method.describe()}, seed {job.options.seed}")
