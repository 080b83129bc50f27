"""`onestep sample`: images from a student."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import MAX_SEED, FolderPath, comma_separated

IMAGES_PER_LABEL = 8
DEFAULT_LABELS = 10


@click.command("sample")
@click.argument("student", type=FolderPath)
@click.option("--steps", type=click.IntRange(min=1), metavar="K", help="Passes of the student.  [default: 1]")
@click.option(
    "--timesteps", callback=comma_separated, metavar="0,5", help="The passes by timestep, instead of --steps."
)
@click.option(
    "--labels",
    callback=comma_separated,
    metavar="0,1,2",
    help="Classes, taken in turn.  [default: the first ten]",
)
@click.option(
    "--num-images",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Images in all.  [default: {IMAGES_PER_LABEL} of each label]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    metavar="S",
    help="Of the noise.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE-OR-DIR",
    help="A name that ends in .png gets one grid, one without an ending becomes a folder of images.",
)
def command(
    student: Path,
    steps: int | None,
    timesteps: tuple[int, ...] | None,
    labels: tuple[int, ...] | None,
    num_images: int | None,
    seed: int,
    out: Path,
) -> None:
    """Draw images with a student, one pass or a few.

    STUDENT is the folder of an exported student, as in runs/digits/student.

    \b
    Examples:
      onestep sample runs/digits/student --out digits.png
      onestep sample runs/digits/student --steps 2 --labels 3,7 --num-images 64 --out threes-and-sevens.png
      onestep sample runs/digits/student --timesteps 0,8 --num-images 1000 --out images
    """
    if steps is not None and timesteps is not None:
        raise click.UsageError("--steps and --timesteps say the same thing in two ways: give one of them")
    refuse_other_endings(out)
    refuse_missing_export(student)
    import numpy as np
    import torch

    from distill.images import image_grid, save_images, save_png
    from distill.sampler import sample_images
    from distill.student import Student
    from distill.trainer import refuse_unwritable

    loaded = Student.from_pretrained(student)
    loaded.pack()
    passes = timesteps or first_timesteps(loaded.timesteps, steps or 1)
    classes = labels or tuple(range(min(loaded.num_classes, DEFAULT_LABELS)))
    drawn = np.resize(np.array(classes, dtype=np.int64), num_images or IMAGES_PER_LABEL * len(classes))
    refuse_unwritable(out.parent if out.suffix else out)
    batches = sample_images(loaded, drawn, seed, passes)
    if out.suffix:
        images = torch.cat([batch.images_BIHW for batch in batches])
        save_png(image_grid(images, columns=len(classes) if len(classes) > 1 else IMAGES_PER_LABEL), out)
    else:
        for batch in batches:
            save_images(out, batch.images_BIHW, batch.first)
    click.echo(f"{out}: {len(drawn):,} images, timesteps {','.join(map(str, passes))}, seed {seed}")


def refuse_other_endings(out: Path) -> None:
    """Stops before a folder is made where a picture was meant.

    Raises:
        click.BadParameter: a name with another ending than .png, or a folder with this one.
    """
    ways = "a name that ends in .png gets one grid, one without an ending becomes a folder of images"
    if out.suffix not in ("", ".png"):
        raise click.BadParameter(f"{out} ends in {out.suffix}: {ways}", param_hint="--out")
    if out.suffix and out.is_dir():
        raise click.BadParameter(f"{out} is a folder: {ways}", param_hint="--out")


def refuse_missing_export(folder: Path) -> None:
    """Stops before a folder without a student is loaded.

    Raises:
        Refused: no export there; a run's folder is told apart.
    """
    from shards.errors import Refused

    if (folder / "config.json").is_file():
        return
    inside = folder / "student"
    hint = f"did you mean {inside}?" if (inside / "config.json").is_file() else "`onestep distill` writes one"
    raise Refused(f"{folder} holds no student (no config.json); {hint}")


def first_timesteps(timesteps: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """The first `steps` of the timesteps that a student was trained at.

    Raises:
        Refused: it was trained at fewer.
    """
    from shards.errors import Refused

    if steps > len(timesteps):
        known = ",".join(map(str, timesteps))
        raise Refused(
            f"--steps {steps}: this student was trained at timesteps {known}, {len(timesteps)} in all"
        )
    return timesteps[:steps]
