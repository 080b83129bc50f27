"""`tokenleap export`: write a student in the file layout of other code."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.group import examples
from pipeline.cli.options import FolderPath


@click.command(
    "export",
    epilog=examples(
        "tokenleap export runs/var-d16/student --format official --out var-d16.pth",
    ),
)
@click.argument("student", type=FolderPath)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["official"]),
    required=True,
    help="official: the checkpoint layout of the official Distilled Decoding sampling code.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="A .pth file for the VAR family, a .pt file for the LlamaGen family.",
)
def command(student: Path, layout: str, out: Path) -> None:
    """Write a student's network for other sampling code.

    STUDENT is the folder of an exported student, as in runs/digits/student. The tokenizer is not exported: it is the
    teacher's, and the official code reads it from the teacher's file.
    """
    from distill.student.export import read_export_config
    from distill.student.published import export_official, official_suffix
    from distill.student.student import Student
    from shards.core.errors import Refused

    family = read_export_config(student).family
    suffix = official_suffix(family)
    if out.suffix != suffix:
        raise click.BadParameter(
            f"{out} must end in {suffix}, like the official files of this family", param_hint="--out"
        )
    loaded = Student.from_pretrained(student)
    if loaded.is_text_conditional:
        raise Refused(f"{student} is text-conditional, and no official layout of such a student was published")
    export_official(loaded, out)
    weights = [loaded.noise_weight_at(timestep) for timestep in loaded.timesteps]
    if any(weights):
        listed = ", ".join(f"{weight:g}" for weight in dict.fromkeys(weights))
        click.echo(
            f"note: this student uses its noise to choose tokens (noise_weight {listed}); the official code takes the "
            "likeliest ones",
            err=True,
        )
    click.echo(f"{out}: {layout} layout, family {family}")
