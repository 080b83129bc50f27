"""`tokenleap students`: which students are published, and bringing them in."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import FolderPath


@click.group("students")
def command() -> None:
    """Show the published students, or bring one in.

    \b
    Examples:
      tokenleap students list
      tokenleap students import var-d16.pth vae_ch160v4096z32.pth --as var-dd-d16 --out var-dd-d16
    """


@command.command("list")
def list_students() -> None:
    """List the published students: their teachers, timesteps, splits and files."""
    from distill.student.published import STUDENTS

    for name, published in STUDENTS.items():
        timesteps = ",".join(map(str, published.timesteps))
        click.echo(
            f"{name:<14} of {published.teacher:<15} timesteps {timesteps:<5} split {published.split:<4} "
            f"{published.licence}  {published.network.file}"
        )


@command.command("import")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "--as", "name", required=True, metavar="NAME", help="Which published student it is: see `list`."
)
@click.option(
    "--out", type=FolderPath, required=True, metavar="STUDENT", help="Folder of the student; a new one."
)
def import_student(files: tuple[str, ...], name: str, out: Path) -> None:
    """Bring a published student in: its own file and its tokenizer's, in any order.

    FILE is a path, or hf://OWNER/REPOSITORY/FILE on the Hugging Face Hub; without any, both are taken from there
    (pip install '.[hub]'). The folder is what `tokenleap distill` makes, and `tokenleap sample` draws from it.
    """
    from distill.student.published import import_student as bring_in

    bring_in(files, name, out)
    click.echo(f"{out}: draw from it with `tokenleap sample {out} --steps 1 --out FILE`")
