"""`tokenleap students`: list and import the published students."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.group import CommandGroup, examples
from pipeline.cli.options import FolderPath


@click.group(
    "students",
    cls=CommandGroup,
    epilog=examples(
        "tokenleap students list",
        "tokenleap students import var-d16.pth vae_ch160v4096z32.pth --as var-dd-d16 --out var-dd-d16",
    ),
)
def command() -> None:
    """List the published students, or import one."""


@command.command(
    "list",
    epilog=examples(
        "tokenleap students list",
    ),
)
def list_students() -> None:
    """List the published students: their teachers, timesteps, splits and files."""
    from distill.student.published import STUDENTS

    for name, published in STUDENTS.items():
        timesteps = ",".join(map(str, published.timesteps))
        click.echo(
            f"{name:<14} of {published.teacher:<15} timesteps {timesteps:<5} split {published.split:<4} "
            f"{published.licence}  {published.network.file}"
        )


@command.command(
    "import",
    epilog=examples(
        "tokenleap students import var-d16.pth vae_ch160v4096z32.pth --as var-dd-d16 --out var-dd-d16",
    ),
)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--as", "name", required=True, metavar="NAME", help="Name of the published student, from `list`.")
@click.option("--out", type=FolderPath, required=True, metavar="STUDENT", help="New folder for the student.")
def import_student(files: tuple[str, ...], name: str, out: Path) -> None:
    """Import a published student from its two files.

    The files are its own and its tokenizer's, in any order. FILE is a path, or
    hf://OWNER/REPOSITORY/FILE on the Hugging Face Hub. Without FILE, both are downloaded from there
    (pip install '.[hub]'). The result is a student folder as `tokenleap distill` writes it, for `tokenleap sample`.
    """
    from distill.student.published import import_student as import_files

    import_files(files, name, out)
    click.echo(f"{out}: generate images with `tokenleap sample {out} --steps 1 --out FILE`")
