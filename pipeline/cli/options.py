"""Arguments and options that several commands share, so that each means the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

MAX_SEED = 2**63 - 1
"""Seeds are whole numbers of 64 bits with a sign, as in the settings."""


class LocalFolder(click.Path):
    """A folder on this machine; a URL is refused, rather than taken for a folder of a strange name."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value:
            self.fail(
                f"{value} is a URL: pairs may lie at one, this must be a folder on this machine", param, ctx
            )
        return super().convert(value, param, ctx)


class PairsLocation(LocalFolder):
    """A pair data set: its folder or its URL, as a `Location`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value:
            from shards.core.errors import Refused
            from shards.storage.paths import location

            try:
                return location(value)
            except Refused as error:
                self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


class StudentLocation(LocalFolder):
    """A student's folder, or its repository on the Hugging Face Hub, as text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.startswith("hf://"):
            return value
        return super().convert(value, param, ctx)


FolderPath = LocalFolder()
StudentPath = StudentLocation()
PairsPath = PairsLocation()

preset_argument = click.argument("preset")
pairs_argument = click.argument("pairs", type=PairsPath)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, as in --set train.seed=1; repeatable, the last wins. --dry-run shows all keys.",
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print the resolved configuration and the plan; write nothing."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Worker processes on this machine; 0 computes in this process.  [default: one for every GPU, or core]",
)
pairs_option = click.option(
    "--pairs", type=PairsPath, required=True, metavar="PAIRS", help="Folder or URL of the pair data set."
)
cluster_option = click.option(
    "--cluster",
    metavar="WHERE",
    help="local, slurm or tcp://HOST:PORT, a Dask scheduler; short for --set cluster.scheduler=WHERE.",
)
num_pairs_option = click.option(
    "--num-pairs",
    type=int,
    metavar="N",
    help="Training pairs; short for --set pairs.num_pairs=N, and stronger.",
)
tiny_random_option = click.option(
    "--tiny-random",
    is_flag=True,
    help="A trial of minutes: the preset's teacher made small, with random weights, and few pairs, steps and images.",
)
captions_option = click.option(
    "--captions",
    metavar="FILE",
    help="Captions, of a teacher that is conditioned on text; short for --set captions.file=FILE.",
)
num_steps_option = click.option(
    "--num-steps",
    type=int,
    metavar="N",
    help="Optimizer steps; short for --set train.num_steps=N, and stronger.",
)


def overrides(settings: Sequence[str], flags: Mapping[str, int | str | None]) -> list[str]:
    """All overrides, the stronger ones later: `--set` as given, then the flags that are short for a key."""
    return [*settings, *(f"{key}={value}" for key, value in flags.items() if value is not None)]


def number_of_workers(asked: int | None, device: str = "auto") -> int:
    """What `--workers` says, or one for every GPU, or for every core where no GPU is used."""
    if asked is not None:
        return asked
    from generate_pairs.compute.devices import default_workers

    return default_workers(device)


def weights(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> float | tuple[float, ...] | None:
    """A click callback: `0.6` as a number, `0.6,1` as several; none below 0."""
    if text is None:
        return None
    from distill.config import checked_weight

    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not a number or numbers separated by commas, as in 0.6,1"
        ) from error
    try:
        return checked_weight(numbers)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def comma_separated(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """A click callback: `0,5` as whole numbers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not whole numbers separated by commas, as in 0,5") from error
