"""`onestep teachers`: which teachers there are, and making the small ones anew."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import MAX_SEED

EMBEDDED = ("digits", "digits-var")


@click.group("teachers")
def command() -> None:
    """Show the teachers, or train an embedded one from nothing.

    \b
    Examples:
      onestep teachers list
      onestep teachers train digits --out digits.safetensors
    """


@command.command("list")
def list_teachers() -> None:
    """List the teachers that ship with onestep."""
    from generate_pairs.teachers.checkpoints import embedded_names, load_teacher

    for name in embedded_names():
        loaded = load_teacher(name)
        teacher = loaded.teacher
        click.echo(
            f"{name:<14} {loaded.family:<9} {teacher.num_classes} classes, "
            f"{teacher.layout.num_tokens} tokens in {teacher.layout.num_steps} AR steps, "
            f"codebook {teacher.vocab_size} x {teacher.codebook_dim}, sha256 {loaded.sha256[:12]}"
        )


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
    from distill.trainer import refuse_unwritable
    from generate_pairs.teachers.embedded.train import train_teacher as train
    from pipeline.progress import progress
    from pipeline.signals import all_or_nothing

    refuse_unwritable(out.parent)
    with all_or_nothing(), progress(name, "steps") as report:
        train(name, out, seed, report)
    click.echo(f"{out}: use it as --set teacher.name={out}")
