"""`tokenleap sample`: images from a student, or from its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from pipeline.cli.options import MAX_SEED, StudentPath, comma_separated, dry_run_option, weights

if TYPE_CHECKING:
    from distill.config import NoiseWeight
    from distill.sampling.image_store import ImageStore, Request
    from distill.sampling.method_spec import Method
    from distill.student.student import Student

IMAGES_PER_LABEL = 8
DEFAULT_LABELS = 10
MOST_COLUMNS = 20
ENDINGS = (
    "a name that ends in .png gets one grid, one in .npz the ADM evaluator's file, "
    "one without an ending becomes a folder of images"
)


class LabelsInTurn(NamedTuple):
    """Classes that are taken in turn, and how many images of each unless told otherwise."""

    cycle: tuple[int, ...]
    images_of_each: int


def labels_in_turn(ctx: click.Context, parameter: click.Parameter, text: str | None) -> LabelsInTurn | None:
    """A click callback: `0,5` or `@FILE`, a file of one whole number a line."""
    if text is None:
        return None
    if not text.startswith("@"):
        return LabelsInTurn(comma_separated(ctx, parameter, text) or (), IMAGES_PER_LABEL)
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
    return LabelsInTurn(labels, 1)


@click.command("sample")
@click.argument("student", type=StudentPath)
@click.option("--steps", type=click.IntRange(min=1), metavar="K", help="Passes of the student.  [default: 1]")
@click.option(
    "--timesteps", callback=comma_separated, metavar="0,5", help="The passes by timestep, instead of --steps."
)
@click.option(
    "--method",
    metavar="M",
    help="Instead of both: student-K, pre-trained-N-M, pre-trained-N-M-flow, teacher or teacher-flow.",
)
@click.option(
    "--teacher",
    metavar="NAME",
    help="The student's teacher by name or file, if not under the name that the student records.",
)
@click.option(
    "--labels",
    callback=labels_in_turn,
    metavar="0,1,2",
    help="Classes, or numbers of captions, taken in turn; @FILE has one a line.  [default: the first ten classes, with "
    "--num-images all; all captions]",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="A caption, of a student that draws images for captions; repeatable, taken in turn.",
)
@click.option(
    "--captions",
    metavar="FILE",
    help="Captions instead: text with one a line, .jsonl or .parquet, or digits, those that ship.",
)
@click.option(
    "--column",
    metavar="NAME",
    help="Where the captions of a .jsonl or .parquet FILE stand.  [default: caption]",
)
@click.option(
    "--text-encoder",
    metavar="NAME",
    help="The text encoder, if not where the student records it.",
)
@click.option(
    "--num-images",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Images in all; may grow.  [default: {IMAGES_PER_LABEL} of each label; of a FILE one a line]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    metavar="S",
    help="Of noise and draws.",
)
@click.option(
    "--noise-weight",
    callback=weights,
    metavar="W",
    help="Of a position's own noise in the choice of its token, or W,W of each timestep's pass; 0 is the official "
    "sampler.  [default: the student's]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="B",
    help="Images at once; an image is the same at any, up to rounding.  [default: 250, fewer of large ones]",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE-OR-DIR",
    help=f"{ENDINGS[0].upper()}{ENDINGS[1:]}.",
)
@dry_run_option
def command(
    student: Path | str,
    steps: int | None,
    timesteps: tuple[int, ...] | None,
    method: str | None,
    teacher: str | None,
    labels: LabelsInTurn | None,
    prompts: tuple[str, ...],
    captions: str | None,
    column: str | None,
    text_encoder: str | None,
    num_images: int | None,
    seed: int,
    noise_weight: NoiseWeight | None,
    batch_size: int | None,
    device: str,
    out: Path,
    dry_run: bool,
) -> None:
    """Draw images with a student, one pass or a few, with its teacher in between, or with the teacher alone.

    STUDENT is the folder of an exported student, as in runs/digits/student, or hf://OWNER/REPOSITORY[@REVISION].
    A stopped folder or .npz goes on when the command is given again.

    \b
    Examples:
      tokenleap sample runs/digits/student --out digits.png
      tokenleap sample runs/digits/student --steps 2 --labels 3,7 --num-images 64 --out threes-and-sevens.png
      tokenleap sample runs/digits/student --timesteps 0,8 --num-images 1000 --out images
      tokenleap sample runs/digits/student --method pre-trained-5-9 --num-images 50000 --out digits.npz
      tokenleap sample runs/digits-text/student --prompt "a three" --prompt "the sum of one and two" --out threes.png
    """
    if sum(way is not None for way in (steps, timesteps, method)) > 1:
        raise click.UsageError(
            "--steps, --timesteps and --method say the same thing in several ways: give one of them"
        )
    refuse_other_endings(out)
    if isinstance(student, Path):
        from distill.student.export import refuse_missing_export

        refuse_missing_export(student)
    import numpy as np

    from distill.config import misfit
    from distill.sampling.job import make_images, open_method, sample_request, teacher_for
    from distill.student.export import CONFIG_FILE, export_folder, read_export_config
    from distill.student.sampler import check_labels, most_at_once
    from distill.student.student import Student
    from generate_pairs.compute.devices import chosen_device
    from generate_pairs.text.encoders import described
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import stopping
    from shards.core.errors import Refused
    from shards.storage.files import refuse_unwritable

    shape = Student.shape_of(student)
    listed = captions_of(shape, prompts, captions, column)
    if listed is not None:
        shape = shape.with_captions(listed, text_encoder)
        if text_encoder is not None:
            described(text_encoder)
    elif text_encoder is not None:
        raise Refused("--text-encoder: this student draws images for classes, and needs none")
    chosen = chosen_method(shape, steps, timesteps, method)
    if untrained := chosen.untrained_timesteps(shape):
        known = ",".join(map(str, shape.timesteps))
        passed = ",".join(map(str, untrained))
        click.echo(f"note: this student was trained at timesteps {known}, not at {passed}", err=True)
    if labels is None and listed is not None:
        labels = LabelsInTurn(tuple(range(len(listed))), IMAGES_PER_LABEL if prompts else 1)
    elif labels is None:
        classes = shape.num_classes if num_images else min(shape.num_classes, DEFAULT_LABELS)
        labels = LabelsInTurn(tuple(range(classes)), IMAGES_PER_LABEL)
    cycle = labels.cycle
    labels_N = np.resize(np.array(cycle, dtype=np.int64), num_images or labels.images_of_each * len(cycle))
    check_labels(labels_N, shape.num_classes)
    config = read_export_config(export_folder(student, (CONFIG_FILE,)))
    weight = config.noise_weight if noise_weight is None else noise_weight
    if wrong := misfit(weight, config.timesteps):
        raise click.BadParameter(wrong, param_hint="--noise-weight")
    request = sample_request(config, chosen, cycle, seed, len(labels_N), weight, listed)
    store = open_store(out, request, len(cycle))
    where = chosen_device(device, "--device")
    if store.is_complete and not dry_run:
        # An npz may still be in parts.
        store.finish(labels_N)
        click.echo(f"{out}: all {len(labels_N):,} images are there already")
        return
    maker = teacher_for(shape, chosen, teacher, where)
    if dry_run:
        click.echo("\n".join(plan_lines(out, shape, chosen, store)))
        return
    refuse_unwritable(out.parent if out.suffix else out)
    loaded = Student.from_pretrained(student, where)
    loaded.noise_weight = weight
    if listed is not None:
        loaded = loaded.with_captions(listed, text_encoder, where)
    loaded.pack()
    if maker is not None:
        maker.teacher.pack()
    with stopping(resumable=out.suffix != ".png") as should_stop, progress("images", "images") as report:
        make_images(
            open_method(loaded, chosen, seed, maker),
            labels_N,
            batch_size or most_at_once(shape.tokenizer.image_shape),
            store,
            device=where,
            report=report,
            should_stop=should_stop,
        )
    click.echo(f"{out}: {len(labels_N):,} images, {chosen.describe()}, seed {seed}")


def captions_of(
    student: Student, prompts: tuple[str, ...], file: str | None, column: str | None
) -> tuple[str, ...] | None:
    """The captions that labels are numbers of; None where they are classes.

    Raises:
        Refused: captions for a student of classes, none or two kinds of them for one of captions, or a bad file.
    """
    from generate_pairs.config import CaptionsConfig
    from generate_pairs.text.caption_lists import prompted, read_captions
    from shards.core.errors import Refused

    if not student.is_text_conditional:
        if prompts or file is not None or column is not None:
            raise Refused("--prompt and --captions: this student draws images for classes, give --labels")
        return None
    if bool(prompts) == (file is not None):
        raise Refused(
            'this student draws images for captions: give --prompt "TEXT", once or more, or --captions FILE'
        )
    if file is None and column is not None:
        raise Refused(f"--column {column}: it is for --captions FILE")
    settings = {"file": file} if column is None else {"file": file, "column": column}
    return prompted(prompts) or read_captions(CaptionsConfig.model_validate(settings)).captions


def chosen_method(
    student: Student, steps: int | None, timesteps: tuple[int, ...] | None, name: str | None
) -> Method:
    """The method that one of the three options asks for.

    Raises:
        Refused: the student or its teacher cannot do it.
    """
    from distill.sampling.method_spec import Method
    from distill.student.sampler import check_timesteps, first_timesteps

    if name is not None:
        return Method.parse(name, student)
    passes = first_timesteps(student.timesteps, steps or 1) if timesteps is None else timesteps
    check_timesteps(passes, student)
    return Method.of_student(passes)


def open_store(out: Path, request: Request, num_labels: int) -> ImageStore:
    """Where the images go, by the name's ending.

    Raises:
        Refused: something else is there.
    """
    from distill.sampling.image_store import Grid, ImageFolder, NpzFile

    if out.suffix == ".png":
        columns = num_labels if 1 < num_labels <= MOST_COLUMNS else IMAGES_PER_LABEL
        return Grid(out, request, columns)
    return NpzFile(out, request) if out.suffix else ImageFolder(out, request)


def plan_lines(out: Path, student: Student, method: Method, store: ImageStore) -> list[str]:
    """What would be made, in words."""
    request = store.request
    count = request["num_images"]
    channels, height, width = student.tokenizer.image_shape
    steps = method.num_steps(student.layout)
    size = count * height * width * (3 if out.suffix == ".npz" else channels)
    kinds = {".png": "one grid", ".npz": "the ADM evaluator's npz", "": "a folder of PNG files"}
    return [
        f"{'method':8}{method.describe()}: {steps} network passes an image",
        f"{'images':8}{count:,} of {channels} x {height} x {width}, {store.num_kept:,} are there already",
        f"{'labels':8}{request['labels']} in turn",
        f"{'seed':8}{request['seed']}",
        f"{'out':8}{out}, {kinds[out.suffix]}; {size / 1e6:,.1f} MB of pixels",
    ]


def refuse_other_endings(out: Path) -> None:
    """Stops before a folder is made where a file was meant.

    Raises:
        click.BadParameter: a name with another ending than .png and .npz, or a folder with one of these.
    """
    if out.suffix not in ("", ".png", ".npz"):
        raise click.BadParameter(f"{out} ends in {out.suffix}: {ENDINGS}", param_hint="--out")
    if out.suffix and out.is_dir():
        raise click.BadParameter(f"{out} is a folder: {ENDINGS}", param_hint="--out")
