"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from generate_pairs.generation.shard_jobs import GenerationSummary
    from pipeline.config.run_config import RunConfig
    from shards.storage.paths import Location

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

MAX_SEED = 2**63 - 1
"""Seeds are signed 64-bit integers, as in the settings."""


class LocalFolder(click.Path):
    """A folder on this machine. A URL is refused, because it would otherwise be read as a folder name."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value:
            self.fail(f"{value} is a URL; only pairs can be at a URL, this must be a local folder", param, ctx)
        return super().convert(value, param, ctx)


class PairsLocation(LocalFolder):
    """The folder or URL of a pair data set, as a `Location`."""

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


class OutputFile(click.Path):
    """A file to write; its name must have the given suffix."""

    def __init__(self, suffix: str) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self.suffix = suffix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix != self.suffix:
            self.fail(f"{path} must end in {self.suffix}", param, ctx)
        return path


def output_option(suffix: str, option: str = "--out") -> Callable[[Decorated], Decorated]:
    """The required option for an output file with this suffix; the parameter is `out`."""
    return click.option(option, "out", type=OutputFile(suffix), required=True, metavar="FILE", help=f"A {suffix} file.")


def number_option(
    *names: str, text: str, minimum: int = 1, maximum: int | None = None, metavar: str = "N", **more: Any
) -> Callable[[Decorated], Decorated]:
    """An option for a whole number in a range; `text` is its help."""
    return click.option(*names, type=click.IntRange(minimum, maximum), metavar=metavar, help=text, **more)


def literal(ctx: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """A click callback for the name of a file: no value of `KEY=VALUE` that looks like a number or a list."""
    if text is None:
        return None
    from pipeline.config.run_config import as_text

    return as_text(text)


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
    help="Override a setting, as in --set train.seed=1; repeatable, the last one wins. --dry-run shows all keys.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the configuration and the plan; write nothing.")
workers_option = number_option(
    "--workers",
    minimum=0,
    text="Worker processes on this machine; 0 computes in this process.  [default: one for each GPU, or for each core]",
)
pairs_option = click.option(
    "--pairs", type=PairsPath, required=True, metavar="PAIRS", help="Folder or URL of the pair data set."
)
cluster_option = click.option(
    "--cluster",
    metavar="WHERE",
    help="local, slurm or a Dask scheduler, tcp://HOST:PORT; short for --set cluster.scheduler=WHERE.",
)
num_pairs_option = click.option(
    "--num-pairs", type=int, metavar="N", help="Training pairs; short for --set pairs.num_pairs=N, and overrides it."
)
tiny_random_option = click.option(
    "--tiny-random",
    is_flag=True,
    help="A trial of minutes: a small version of the preset's teacher with random weights; few pairs, steps and images.",
)
captions_option = click.option(
    "--captions",
    metavar="FILE",
    callback=literal,
    help="Captions for a text-conditional teacher; short for --set captions.file=FILE.",
)
num_steps_option = click.option(
    "--num-steps", type=int, metavar="N", help="Optimizer steps; short for --set train.num_steps=N, and overrides it."
)


SHORT_OPTIONS = {
    "captions": "captions.file",
    "num_pairs": "pairs.num_pairs",
    "num_steps": "train.num_steps",
    "device_batch_size": "train.device_batch_size",
    "cluster": "cluster.scheduler",
}
"""Parameters of commands with the settings key that each is short for."""


def overrides(options: Mapping[str, Any], keys: Mapping[str, str] = SHORT_OPTIONS) -> list[str]:
    """All overrides in order of precedence: `--set`, then the options that are short for a key."""
    return [*options["settings"], *(f"{keys[name]}={options[name]}" for name in keys if options.get(name) is not None)]


def composed(options: Mapping[str, Any]) -> RunConfig:
    """The configuration of a command with the options `PRESET`, `--tiny-random`, `--set` and those short for a key."""
    from pipeline.config.run_config import compose

    return compose(options["preset"], overrides(options), tiny_random=options["tiny_random"])


def number_of_workers(workers: int | None, device: str = "auto") -> int:
    """The value of `--workers`; by default one worker for each GPU, or for each core if no GPU is used."""
    if workers is not None:
        return workers
    from generate_pairs.compute.devices import default_workers

    return default_workers(device)


def echo_generated(summary: GenerationSummary, pairs: Location) -> None:
    """Print what a generation added, and the totals of the data set."""
    from pipeline.report.terminal_summary import pairs_line
    from pipeline.run_folder.results import PairStatistics
    from shards.dataset.manifest import Manifest

    click.echo(f"made {summary.num_pairs:,} pairs, {summary.pairs_per_second:,.1f} pairs/s")
    click.echo(f"{pairs}: {pairs_line(PairStatistics.of(Manifest.open(pairs)))}")


def weights(ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | tuple[float, ...] | None:
    """A click callback that parses `0.6` as one number and `0.6,1` as several; each at least 0."""
    if text is None:
        return None
    from distill.config import validate_noise_weight

    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a number or numbers separated by commas, as in 0.6,1") from error
    try:
        return validate_noise_weight(numbers)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def comma_separated(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """A click callback that parses `0,5` as whole numbers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not whole numbers separated by commas, as in 0,5") from error
