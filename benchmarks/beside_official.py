"""Compare the speed of the official code and of Tokenleap, with the same random weights, alternating in one process.

Before a case is timed, both receive the same tokens, and their logits must agree. The timed part makes tokens: a
teacher's sampling loop up to its last draw, or one pass of a student, without the decoder. Cases that end in -map time
Tokenleap only: its sampling loop with multinomial draws, then with the flow map.

    python benchmarks/beside_official.py --official ../distilled_decoding --cases gpt-b,var-d16 --threads 1
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import click
import torch
from contests import Comparison, map_comparison, student_comparison, teacher_comparison
from official_code import OfficialCode, randomised
from same_weights import LLAMAGEN_CODEBOOK_DIM, Config, our_teacher, students, teachers
from script import Script, markdown
from torch import Tensor

from generate_pairs.compute.threads import computing_threads
from generate_pairs.flow_map.exponential_adams import default_num_steps
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.teachers.llamagen.transformer import OFFICIAL_SIZES, LlamaGenConfig
from generate_pairs.teachers.var.tokenizer import VarTokenizerConfig
from generate_pairs.teachers.var.transformer import VarConfig, official_var
from pipeline.cli.options import FolderPath, comma_separated
from shards.core.errors import Failed, Refused

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest number. Rounding is well below it; a wrong operation is not."""

NUM_LABELS = 10
GPT_B = LlamaGenConfig(*OFFICIAL_SIZES["B"], vocab_size=16384, num_tokens=256, num_classes=1000)
SMALL = LlamaGenConfig(width=256, depth=6, num_heads=8, vocab_size=1024, num_tokens=64, num_classes=1000)
VAR_D16 = official_var(16, VarTokenizerConfig().scales)


@dataclass(frozen=True)
class Case:
    """The timed part, its shape and its batch sizes."""

    kind: Literal["teacher", "student", "map"]
    config: Config
    batch_sizes: tuple[int, ...]


CASES = {
    "gpt-b": Case("teacher", GPT_B, (1, 8)),
    "small": Case("teacher", SMALL, (1, 8, 64)),
    "var-d16": Case("teacher", VAR_D16, (1, 2)),
    "gpt-b-student": Case("student", GPT_B, (1, 8)),
    "var-d16-student": Case("student", VAR_D16, (1,)),
    "gpt-b-map": Case("map", GPT_B, (8,)),
    "var-d16-map": Case("map", VAR_D16, (8,)),
}

HEADERS = {
    "official": ("case", "batch", "threads", "official s", "ours s", "ratio", "largest difference"),
    "map": ("case", "batch", "threads", "draws s", "flow map s", "overhead"),
}


@dataclass(frozen=True)
class Options:
    """The command line options that concern all cases."""

    tokens: int | None
    filters: bool
    small: bool
    device: torch.device
    batches: tuple[int, ...] | None
    threads: tuple[int, ...]
    repeats: int

    def config(self, config: Config) -> Config:
        """A case's shape or, with --small, one that takes milliseconds."""
        if not self.small:
            return config
        shrunk = replace(config, width=64, depth=2, num_heads=4, vocab_size=256, num_classes=NUM_LABELS)
        if isinstance(shrunk, VarConfig):
            return replace(shrunk, scales=(1, 2, 3, 4))
        return replace(shrunk, num_tokens=16)

    def settings(self, config: Config) -> SamplingSettings:
        """The guidance of the official teacher-involved sampler and, with --filters, its filters."""
        if not self.filters:
            return SamplingSettings(2.0)
        if isinstance(config, VarConfig):
            return SamplingSettings(2.0, top_k=min(900, config.vocab_size), top_p=0.95)
        return SamplingSettings(2.0, top_k=8000)

    def num_steps(self, layout: TokenLayout) -> int:
        """The smallest number of AR steps that make the requested tokens."""
        num_tokens = layout.num_tokens if self.tokens is None else min(self.tokens, layout.num_tokens)
        return next(step for step, start in enumerate(layout.starts) if start >= num_tokens)

    def labels(self, batch_size: int) -> Tensor:
        """Classes (B,)."""
        return (torch.arange(batch_size) % NUM_LABELS).to(self.device)


def open_case(case: Case, code: OfficialCode, options: Options) -> Callable[[int], Comparison]:
    """Build a case's networks; return a function from batch size to comparison."""
    config = options.config(case.config)
    settings, num_steps = options.settings(config), options.num_steps(layout_of(config))
    if case.kind == "teacher":
        official, teacher = teachers(code, config, options.device)
        return lambda size: teacher_comparison(official, teacher, settings, options.labels(size), num_steps)
    if case.kind == "student":
        dim = config.codebook_dim if isinstance(config, VarConfig) else LLAMAGEN_CODEBOOK_DIM
        shape = (layout_of(config).num_tokens, dim)
        theirs, student = students(code, config, options.device)
        return lambda size: student_comparison(theirs, student, shape, options.labels(size))
    mapped = randomised(our_teacher(config)).to(options.device)
    solver_steps = default_num_steps(mapped.codebook_dim)
    return lambda size: map_comparison(mapped, settings, options.labels(size), num_steps, solver_steps)


def layout_of(config: Config) -> TokenLayout:
    """The number of tokens of each AR step."""
    return config.layout if isinstance(config, VarConfig) else TokenLayout((1,) * config.num_tokens)


def median_seconds(comparison: Comparison, threads: int, options: Options) -> tuple[float, float]:
    """Median seconds of both ways. They alternate, so that a temporary slowdown of the machine affects both."""
    times: tuple[list[float], list[float]] = ([], [])
    with computing_threads(threads):
        for _ in range(options.repeats):
            for way, measured in zip((comparison.first, comparison.second), times, strict=True):
                began = synchronized_time(options.device)
                way()
                measured.append(synchronized_time(options.device) - began)
    return statistics.median(times[0]), statistics.median(times[1])


def synchronized_time(device: torch.device) -> float:
    """The time after the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rows_of(name: str, code: OfficialCode, options: Options) -> list[list[str]]:
    """The table rows of a case, for all its batch sizes and numbers of threads.

    Raises:
        Failed: the outputs of both codes differ by more than rounding.
    """
    case, rows = CASES[name], []
    comparison_of = open_case(case, code, options)
    for batch_size in options.batches or case.batch_sizes:
        comparison = comparison_of(batch_size)
        with computing_threads(options.threads[0]):
            checked = checked_difference(name, comparison)
        for threads in options.threads:
            first, second = median_seconds(comparison, threads, options)
            ratio = f"{100 * (second / first - 1):+.0f} %" if case.kind == "map" else f"{first / second:.2f}"
            cells = [
                case_title(name, options),
                str(batch_size),
                str(threads),
                f"{first:.3g}",
                f"{second:.3g}",
            ]
            rows.append([*cells, ratio, *checked])
            click.echo(" ".join(rows[-1]), err=True)
    return rows


def checked_difference(name: str, comparison: Comparison) -> list[str]:
    """The cell with the difference of both outputs; no cell if they need not agree. Also warms up both."""
    if comparison.difference is None:
        comparison.first()
        comparison.second()
        return []
    found = comparison.difference()
    if not found.worst < TOLERANCE * found.largest:
        raise Failed(
            f"{name}: official and own outputs differ by {found.worst:.2g}, the largest is {found.largest:.2g}: "
            f"they do not compute the same (rounding would be at most {TOLERANCE:g} of the largest)"
        )
    return [f"{found.worst:.1e} of {found.largest:.1f}"]


def case_title(name: str, options: Options) -> str:
    """A case's name and the options that shorten it."""
    layout = layout_of(options.config(CASES[name].config))
    num_tokens = layout.starts[options.num_steps(layout)]
    parts = [name, *(["shrunk"] if options.small else [])]
    if num_tokens < layout.num_tokens and CASES[name].kind != "student":
        parts.append(f"first {num_tokens} of {layout.num_tokens} tokens")
    return ", ".join(parts)


def case_names(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """A click callback: names of cases, separated by commas."""
    names = tuple(text.split(","))
    for name in names:
        if name not in CASES:
            raise click.BadParameter(f"unknown case {name!r}; known cases: {', '.join(CASES)}")
    return names


def positive_numbers(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """A click callback: positive integers, separated by commas."""
    numbers = comma_separated(ctx, parameter, text)
    if numbers and min(numbers) < 1:
        raise click.BadParameter(f"{text}: each number must be at least 1")
    return numbers


@click.command(cls=Script)
@click.option(
    "--official",
    type=FolderPath,
    required=True,
    metavar="DIR",
    help="Checkout of microsoft/distilled_decoding.",
)
@click.option(
    "--cases",
    callback=case_names,
    default=",".join(CASES),
    metavar="A,B",
    help=f"Some of {', '.join(CASES)}.  [default: all]",
)
@click.option("--batches", callback=positive_numbers, metavar="1,8", help="Batch sizes.  [default: each case's own]")
@click.option(
    "--threads",
    callback=positive_numbers,
    default="1,2",
    show_default=True,
    metavar="1,2",
    help="CPU threads.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Repetitions; the table shows the median.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="End teachers' sequences after N tokens (VAR: after the scale that reaches N); the table marks this.",
)
@click.option("--filters", is_flag=True, help="The official filters: LlamaGen top-k 8000, VAR top-k 900 and top-p 0.95.")
@click.option("--small", is_flag=True, help="Small shapes that take milliseconds, to try the program.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda (untested).")
def main(
    official: Path,
    cases: Sequence[str],
    batches: tuple[int, ...] | None,
    threads: tuple[int, ...],
    repeats: int,
    tokens: int | None,
    filters: bool,
    small: bool,
    device: str,
) -> None:
    """Time the official code and Tokenleap; print a table of both, and one of the flow map's overhead."""
    if device not in ("cpu", "cuda"):
        raise Refused(f"--device {device}: must be cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise Refused("--device cuda: this torch finds no GPU")
    # The official code uses the global generator to initialise and to draw.
    torch.manual_seed(0)
    # On a GPU, convolutions would round to TF32 and hide a difference.
    torch.backends.cudnn.allow_tf32 = False
    options = Options(tokens, filters, small, torch.device(device), batches, threads, repeats)
    code = OfficialCode.of(official)
    tables: dict[str, list[list[str]]] = {kind: [] for kind in HEADERS}
    with warnings.catch_warnings():
        # The official code is for an older torch; the present one warns at every step.
        warnings.simplefilter("ignore", FutureWarning)
        for name in cases:
            tables["map" if CASES[name].kind == "map" else "official"] += rows_of(name, code, options)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    filtered = "official filters" if filters else "no filters"
    click.echo(f"torch {torch.__version__}, {where}, float32, {filtered}, median of {repeats}\n")
    click.echo("\n\n".join(markdown(HEADERS[kind], rows) for kind, rows in tables.items() if rows))


if __name__ == "__main__":
    main()
