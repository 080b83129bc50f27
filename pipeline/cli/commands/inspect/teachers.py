"""`tokenleap teachers`: which teachers there are, bringing published ones in, and making the small ones anew."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import MAX_SEED

EMBEDDED = ("digits", "digits-64", "digits-var")


@click.group("teachers")
def command() -> None:
    """Show the teachers, bring published ones in, or train an embedded one from nothing.

    \b
    Examples:
      tokenleap teachers list
      tokenleap teachers inspect var_d16.pth
      tokenleap teachers import var_d16.pth vae_ch160v4096z32.pth --as var-d16
      tokenleap teachers train digits --out digits.safetensors
    """


@command.command("list")
def list_teachers() -> None:
    """List every teacher there is a name for, and whether it is here."""
    from generate_pairs.teachers.checkpoints import (
        embedded_names,
        imported_folder,
        imported_names,
        load_teacher,
    )
    from generate_pairs.teachers.importing.inspect import num_parameters, published_transformer
    from generate_pairs.teachers.published import TEACHERS

    here = imported_names()
    for name in embedded_names():
        loaded = load_teacher(name)
        layout, count = loaded.teacher.layout, num_parameters(loaded.teacher.transformer)
        click.echo(
            f"{name:<18} {loaded.family:<9} {count / 1e6:7.1f}M  {layout.num_tokens:>5} tokens in "
            f"{layout.num_steps:>4} AR steps  ships with tokenleap"
        )
    for name, published in TEACHERS.items():
        config = published.transformer.config
        layout, count = config.layout, num_parameters(published_transformer(name))
        state = "imported" if name in here else "not here"
        click.echo(
            f"{name:<18} {published.family:<9} {count / 1e6:7.1f}M  {layout.num_tokens:>5} "
            f"tokens in {layout.num_steps:>4} AR steps  {state:<8}  {published.licence}  "
            f"{published.transformer.file}, {published.tokenizer.file}"
        )
    for name in sorted(set(here) - set(TEACHERS)):
        click.echo(f"{name:<18} in {imported_folder()}")


@command.command("import")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "--as", "name", required=True, metavar="NAME", help="Which published teacher it is: see `list`."
)
def import_teacher(files: tuple[str, ...], name: str) -> None:
    """Bring a published teacher in: its transformer's file and its tokenizer's, in any order.

    FILE is a path, or hf://OWNER/REPOSITORY/FILE on the Hugging Face Hub; without any, both are taken from there
    (pip install '.[hub]'). Every name, shape and kind of number has to be the table's. The result is one
    safetensors file in ${TOKENLEAP_HOME:-~/.cache/tokenleap}/teachers, with the configuration and the sha256 of
    both files inside.

    \b
    Examples:
      tokenleap teachers import var_d16.pth vae_ch160v4096z32.pth --as var-d16
      tokenleap teachers import --as llamagen-b-256
    """
    from generate_pairs.teachers.checkpoints import read_about
    from generate_pairs.teachers.importing.import_teacher import import_teacher as bring_in

    path = bring_in(files, name)
    about = read_about(path)
    for role in ("transformer", "tokenizer"):
        click.echo(f"{role}: sha256 {about['files'][role]}")
    if repeated := about["codebook_rows_repeated"]:
        click.echo(
            f"note: {repeated} codebook rows equal another; of equal rows the flow map takes the likelier"
        )
    click.echo(f"{path}: use it as --set teacher.name={name}")


@command.command("inspect")
@click.argument("file", metavar="FILE")
def inspect_file(file: str) -> None:
    """Say which published network a checkpoint file holds, or what keeps it from being the nearest one.

    Exit code 1 where it fits none.
    """
    from distill.student.published import networks
    from generate_pairs.teachers.importing.checkpoint_file import local_file
    from generate_pairs.teachers.importing.inspect import describe, inspect

    fits = inspect(local_file(file), networks())
    click.echo("\n".join(f"{file} {line}" if "fits" in line else line for line in describe(fits)))
    if any(fit.wrong for fit in fits):
        raise click.exceptions.Exit(1)


@command.command("train")
@click.argument("name", type=click.Choice(EMBEDDED))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="A .safetensors file.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    metavar="S",
    help="Of everything.",
)
def train_teacher(name: str, out: Path, seed: int) -> None:
    """Train an embedded teacher on handwritten digits, tokenizer and all, in minutes on one core.

    FILE is written at the end: a training that was stopped begins again.
    """
    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out} must end in .safetensors", param_hint="--out")
    from generate_pairs.digits.train_teachers import train_teacher as train
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import all_or_nothing
    from shards.storage.files import refuse_unwritable

    refuse_unwritable(out.parent)
    with all_or_nothing(), progress(name, "steps") as report:
        train(name, out, seed, report)
    click.echo(f"{out}: use it as --set teacher.name={out}")
