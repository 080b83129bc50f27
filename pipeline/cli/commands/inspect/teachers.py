"""`tokenleap teachers`: list, import and inspect teachers, and train the embedded ones."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.group import CommandGroup, examples
from pipeline.cli.options import MAX_SEED, number_option, output_option


@click.group(
    "teachers",
    cls=CommandGroup,
    epilog=examples(
        "tokenleap teachers list",
        "tokenleap teachers inspect var_d16.pth",
        "tokenleap teachers import var_d16.pth vae_ch160v4096z32.pth --as var-d16",
        "tokenleap teachers train digits --out digits.safetensors",
    ),
)
def command() -> None:
    """List, import and inspect teachers, or train an embedded one."""


@command.command(
    "list",
    epilog=examples(
        "tokenleap teachers list",
    ),
)
def list_teachers() -> None:
    """List every known teacher, and whether it is imported."""
    from generate_pairs.teachers.checkpoints import embedded_names, imported_folder, imported_names, load_teacher
    from generate_pairs.teachers.importing.inspect import num_parameters, published_transformer
    from generate_pairs.teachers.published import TEACHERS

    imported = imported_names()
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
        state = "imported" if name in imported else "missing"
        click.echo(
            f"{name:<18} {published.family:<9} {count / 1e6:7.1f}M  {layout.num_tokens:>5} "
            f"tokens in {layout.num_steps:>4} AR steps  {state:<8}  {published.licence}  "
            f"{published.transformer.file}, {published.tokenizer.file}"
        )
    for name in sorted(set(imported) - set(TEACHERS)):
        click.echo(f"{name:<18} in {imported_folder()}")


@command.command(
    "import",
    epilog=examples(
        "tokenleap teachers import var_d16.pth vae_ch160v4096z32.pth --as var-d16",
        "tokenleap teachers import --as llamagen-b-256",
    ),
)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--as", "name", required=True, metavar="NAME", help="Name of the published teacher, from `list`.")
def import_teacher(files: tuple[str, ...], name: str) -> None:
    """Import a published teacher from its two files.

    The files are the transformer's and the tokenizer's, in any order. FILE is a path, or
    hf://OWNER/REPOSITORY/FILE on the Hugging Face Hub. Without FILE, both are downloaded from there
    (pip install '.[hub]'). Every tensor must have the expected name, shape and dtype. The result is one safetensors
    file in ${TOKENLEAP_HOME:-~/.cache/tokenleap}/teachers. It also contains the configuration and the sha256 of both
    files.
    """
    from generate_pairs.teachers.checkpoints import read_about
    from generate_pairs.teachers.importing.import_teacher import import_teacher as import_files

    path = import_files(files, name)
    about = read_about(path)
    for role in ("transformer", "tokenizer"):
        click.echo(f"{role}: sha256 {about['files'][role]}")
    if repeated := about["codebook_rows_repeated"]:
        click.echo(f"note: {repeated} codebook rows equal another; of equal rows the flow map uses the likelier one")
    click.echo(f"{path}: use it as --set teacher.name={name}")


@command.command(
    "inspect",
    epilog=examples(
        "tokenleap teachers inspect var_d16.pth",
    ),
)
@click.argument("file", metavar="FILE")
def inspect_file(file: str) -> None:
    """Identify the published network in a checkpoint file.

    If none fits, the differences from the nearest one are listed, and the exit code is 1.
    """
    from distill.student.published import published_networks
    from generate_pairs.teachers.importing.checkpoint_file import local_file
    from generate_pairs.teachers.importing.inspect import describe, inspect

    fits = inspect(local_file(file), published_networks())
    click.echo("\n".join(f"{file} {line}" if "fits" in line else line for line in describe(fits)))
    if any(fit.problems for fit in fits):
        raise click.exceptions.Exit(1)


@command.command(
    "train",
    epilog=examples(
        "tokenleap teachers train digits --out digits.safetensors",
    ),
)
@click.argument("name", type=click.Choice(["digits", "digits-64", "digits-var"]))
@output_option(".safetensors")
@number_option(
    "--seed", minimum=0, maximum=MAX_SEED, default=0, show_default=True, metavar="S", text="Seed of the training."
)
def train_teacher(name: str, out: Path, seed: int) -> None:
    """Train an embedded teacher and its tokenizer on handwritten digits.

    It takes minutes on one core.     FILE is written only at the end: a stopped training starts again.
    """
    from generate_pairs.digits.train_teachers import train_teacher as train
    from pipeline.runtime.progress import progress
    from pipeline.runtime.signals import all_or_nothing
    from shards.storage.files import refuse_unwritable

    refuse_unwritable(out.parent)
    with all_or_nothing(), progress(name, "steps") as report:
        train(name, out, seed, report)
    click.echo(f"{out}: use it as --set teacher.name={out}")
