"""How fast is the official code, and how fast is this one? Same random weights, by turns, in one process.

Before anything is timed both are given the same tokens, and their logits must agree. Timed is what makes tokens: a
teacher's sampling loop up to its last draw, or one pass of a student; no decoder. Cases that end in -map time this
code alone: its walk with multinomial draws, then with the flow map.

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
from contests import Contest, map_contest, student_contest, teacher_contest
from official_code import OfficialCode, randomised
from same_weights import LLAMAGEN_CODEBOOK_DIM, Config, our_teacher, students, teachers
from script import Script, markdown
from torch import Tensor, nn

from generate_pairs.compute.packed_linear import pack_linears
from generate_pairs.compute.threads import computing_threads
from generate_pairs.flow_map.closed_form import default_num_steps
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.teachers.llamagen.transformer import OFFICIAL_SIZES, LlamaGenConfig
from generate_pairs.teachers.var.tokenizer import VarTokenizerConfig
from generate_pairs.teachers.var.transformer import VarConfig, official_var
from pipeline.cli.options import FolderPath, comma_separated
from shards.core.errors import Failed, Refused

TOLERANCE = 1e-4
"""Of the largest number. Rounding stays well below it; a wrong operation does not."""

NUM_LABELS = 10
GPT_B = LlamaGenConfig(*OFFICIAL_SIZES["B"], vocab_size=16384, num_tokens=256, num_classes=1000)
SMALL = LlamaGenConfig(width=256, depth=6, num_heads=8, vocab_size=1024, num_tokens=64, num_classes=1000)
VAR_D16 = official_var(16, VarTokenizerConfig().scales)


@dataclass(frozen=True)
class Case:
    """What is timed, of which shape, and at which batch sizes."""

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
class BatchTargets:
    """What the command line says about all cases."""

    tokens: int | None
    filters: bool
    plain: bool
    small: bool
    device: torch.device
    batches: tuple[int, ...] | None
    threads: tuple[int, ...]
    repeats: int

    def config(self, config: Config) -> Config:
        """A case's shape or, to try things out, one that takes milliseconds."""
        if not self.small:
            return config
        shrunk = replace(config, width=64, depth=2, num_heads=4, vocab_size=256, num_classes=NUM_LABELS)
        if isinstance(shrunk, VarConfig):
            return replace(shrunk, scales=(1, 2, 3, 4))
        return replace(shrunk, num_tokens=16)

    def settings(self, config: Config) -> SamplingSettings:
        """The guidance of the official sampler that involves a teacher and, if asked for, its filters."""
        if not self.filters:
            return SamplingSettings(2.0)
        if isinstance(config, VarConfig):
            return SamplingSettings(2.0, top_k=min(900, config.vocab_size), top_p=0.95)
        return SamplingSettings(2.0, top_k=8000)

    def pack(self, ours: nn.Module) -> None:
        """Lay weights out as stage one and `tokenleap sample` do, unless they are to stay as they were loaded."""
        if not self.plain:
            pack_linears(ours)

    def num_steps(self, layout: TokenLayout) -> int:
        """AR steps, as few as make the tokens that are asked for."""
        wanted = layout.num_tokens if self.tokens is None else min(self.tokens, layout.num_tokens)
        return next(step for step, start in enumerate(layout.starts) if start >= wanted)

    def labels(self, batch_size: int) -> Tensor:
        """Classes (B,)."""
        return (torch.arange(batch_size) % NUM_LABELS).to(self.device)


def open_case(case: Case, code: OfficialCode, asked: BatchTargets) -> Callable[[int], Contest]:
    """Make a case's networks; returns its contest by batch size."""
    config = asked.config(case.config)
    settings, num_steps = asked.settings(config), asked.num_steps(layout_of(config))
    if case.kind == "teacher":
        official, teacher = teachers(code, config, asked.device)
        asked.pack(teacher)
        return lambda size: teacher_contest(official, teacher, settings, asked.labels(size), num_steps)
    if case.kind == "student":
        dim = config.codebook_dim if isinstance(config, VarConfig) else LLAMAGEN_CODEBOOK_DIM
        shape = (layout_of(config).num_tokens, dim)
        theirs, student = students(code, config, asked.device)
        asked.pack(student)
        return lambda size: student_contest(theirs, student, shape, asked.labels(size))
    mapped = randomised(our_teacher(config)).to(asked.device)
    asked.pack(mapped)
    solver_steps = default_num_steps(mapped.codebook_dim)
    return lambda size: map_contest(mapped, settings, asked.labels(size), num_steps, solver_steps)


def layout_of(config: Config) -> TokenLayout:
    """How many tokens each AR step makes."""
    return config.layout if isinstance(config, VarConfig) else TokenLayout((1,) * config.num_tokens)


def median_seconds(contest: Contest, threads: int, asked: BatchTargets) -> tuple[float, float]:
    """Of both ways, which take turns, so that a machine that slows down for a while slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    with computing_threads(threads):
        for _ in range(asked.repeats):
            for way, measured in zip((contest.first, contest.second), times, strict=True):
                began = finished(asked.device)
                way()
                measured.append(finished(asked.device) - began)
    return statistics.median(times[0]), statistics.median(times[1])


def finished(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rows_of(name: str, code: OfficialCode, asked: BatchTargets) -> list[list[str]]:
    """A case at all its batch sizes and numbers of threads, as cells.

    Raises:
        Failed: official and own outputs differ by more than rounding.
    """
    case, rows = CASES[name], []
    contest_of = open_case(case, code, asked)
    for batch_size in asked.batches or case.batch_sizes:
        contest = contest_of(batch_size)
        with computing_threads(asked.threads[0]):
            checked = checked_difference(name, contest)
        for threads in asked.threads:
            first, second = median_seconds(contest, threads, asked)
            verdict = (
                f"{100 * (second / first - 1):+.0f} %" if case.kind == "map" else f"{first / second:.2f}"
            )
            cells = [described(name, asked), str(batch_size), str(threads), f"{first:.3g}", f"{second:.3g}"]
            rows.append([*cells, verdict, *checked])
            click.echo(" ".join(rows[-1]), err=True)
    return rows


def checked_difference(name: str, contest: Contest) -> list[str]:
    """The cell that says how far both ways are apart; none where they need not agree. Also warms them up."""
    if contest.difference is None:
        contest.first()
        contest.second()
        return []
    found = contest.difference()
    if not found.worst < TOLERANCE * found.largest:
        raise Failed(
            f"{name}: official and own outputs differ by {found.worst:.2g}, the largest being {found.largest:.2g}: "
            f"they do not compute the same (at most {TOLERANCE:g} of it would be rounding)"
        )
    return [f"{found.worst:.1e} of {found.largest:.1f}"]


def described(name: str, asked: BatchTargets) -> str:
    """A case's name with what makes its numbers no measure of the whole."""
    layout = layout_of(asked.config(CASES[name].config))
    num_tokens = layout.starts[asked.num_steps(layout)]
    words = [name, *(["shrunk"] if asked.small else [])]
    if num_tokens < layout.num_tokens and CASES[name].kind != "student":
        words.append(f"first {num_tokens} of {layout.num_tokens} tokens")
    return ", ".join(words)


def case_names(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """A click callback: names of cases, separated by commas."""
    names = tuple(text.split(","))
    for name in names:
        if name not in CASES:
            raise click.BadParameter(f"no case is called {name!r}: there are {', '.join(CASES)}")
    return names


def positive_numbers(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """A click callback: whole numbers above 0, separated by commas."""
    numbers = comma_separated(ctx, parameter, text)
    if numbers and min(numbers) < 1:
        raise click.BadParameter(f"{text}: the least is 1")
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
@click.option(
    "--batches", callback=positive_numbers, metavar="1,8", help="Batch sizes.  [default: each case's own]"
)
@click.option(
    "--threads",
    callback=positive_numbers,
    default="1,2",
    show_default=True,
    metavar="1,2",
    help="CPU threads.",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Turns; the median counts."
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="End teachers' sequences after N tokens, VAR's after the scale that reaches them; the table says so.",
)
@click.option(
    "--filters", is_flag=True, help="The official filters: LlamaGen top-k 8000, VAR top-k 900 and top-p 0.95."
)
@click.option("--plain", is_flag=True, help="Leave this code's weights as they were loaded, on a CPU, too.")
@click.option("--small", is_flag=True, help="Shapes that take milliseconds, to try the program out.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda, which nobody has tried.")
def main(
    official: Path,
    cases: Sequence[str],
    batches: tuple[int, ...] | None,
    threads: tuple[int, ...],
    repeats: int,
    tokens: int | None,
    filters: bool,
    plain: bool,
    small: bool,
    device: str,
) -> None:
    """Time the official code beside this one; prints a table, and one of the flow map's overhead."""
    if device not in ("cpu", "cuda"):
        raise Refused(f"--device {device}: it is cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise Refused("--device cuda: this torch finds no GPU")
    # The official code initialises and draws by the global generator.
    torch.manual_seed(0)
    # On a GPU, convolutions would round to TF32 and hide a difference.
    torch.backends.cudnn.allow_tf32 = False
    asked = BatchTargets(tokens, filters, plain, small, torch.device(device), batches, threads, repeats)
    code = OfficialCode.of(official)
    tables: dict[str, list[list[str]]] = {kind: [] for kind in HEADERS}
    with warnings.catch_warnings():
        # The official code is of an older torch, which says so at every step.
        warnings.simplefilter("ignore", FutureWarning)
        for name in cases:
            tables["map" if CASES[name].kind == "map" else "official"] += rows_of(name, code, asked)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    filtered = "official filters" if filters else "no filters"
    weights = "plain" if plain else "packed"
    click.echo(
        f"torch {torch.__version__}, {where}, float32, {weights} weights, {filtered}, median of {repeats}\n"
    )
    click.echo("\n\n".join(markdown(HEADERS[kind], rows) for kind, rows in tables.items() if rows))


if __name__ == "__main__":
    main()
