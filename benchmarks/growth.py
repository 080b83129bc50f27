"""Time a data set of many shards: opening it, making its next shard, reading the first training batch.

The rows are simulated; tar files exist only for the first batch of a stream. Each time is measured in a new
process, without its start and imports. Linux only.

    python benchmarks/growth.py --shards 10000 --work growth
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from script import Script, markdown

from shards.core.errors import Failed, Refused

PAIRS_PER_SHARD = 16
BATCH_SIZE = 64
SEED = 0
HEADER = ("what", "seconds", "allowed", "peak MB", "allowed")
ROW_EXTRAS = {"seconds": 1.5, "host": "simulated", "device": "cpu", "batch_size": 16, "versions": "simulated"}


@dataclass(frozen=True)
class Goal:
    """A measurement and its limits."""

    name: str
    measure: Callable[[Path, int], float]
    seconds: float
    with_joined: bool
    megabytes: float | None = None


def settings(num_shards: int) -> Any:
    """Settings of a data set with this number of shards; the first shard is held out."""
    from generate_pairs.config import GenerateConfig

    pairs = {"num_pairs": (num_shards - 1) * PAIRS_PER_SHARD, "pairs_per_shard": PAIRS_PER_SHARD}
    return GenerateConfig.model_validate(
        {"teacher": {"name": "digits"}, "pairs": pairs | {"batch_size": PAIRS_PER_SHARD, "solver_steps": 8}}
    )


def simulate(root: Path, num_shards: int) -> None:
    """Create a data set and commit rows of shards that do not exist."""
    from generate_pairs.generation.plan import pair_spec
    from generate_pairs.teachers.checkpoints import load_teacher
    from shards.dataset.manifest import create_dataset
    from shards.dataset.manifest_row import ManifestRow, shard_name, write_row

    config = settings(num_shards)
    spec = pair_spec(config, load_teacher(config.teacher.name))
    create_dataset(root, spec)
    for index in range(num_shards):
        first_pair = index * PAIRS_PER_SHARD
        row = ManifestRow(
            shard_name(index), first_pair, PAIRS_PER_SHARD, 1, f"{index:064x}", spec.fingerprint, **ROW_EXTRAS
        )
        write_row(root, row)


def make_first_window(root: Path) -> None:
    """Write the shards that the first batch of a stream reads; all tokens are 0."""
    import numpy as np

    from shards.dataset.manifest import Manifest
    from shards.dataset.replace_shard import replace_shard
    from shards.format.noise import gaussian_noise
    from shards.format.pairs import Pairs, label
    from shards.streaming.order import Order

    manifest = Manifest.open(root)
    spec, view = manifest.spec, manifest.view()
    places = view.first + Order(view.sizes, SEED).indices(0, BATCH_SIZE)
    for shard in sorted(set((places // PAIRS_PER_SHARD).tolist())):
        index_B = np.arange(shard * PAIRS_PER_SHARD, (shard + 1) * PAIRS_PER_SHARD, dtype=np.int64)
        noise_BLC = gaussian_noise(spec.seed, int(index_B[0]), PAIRS_PER_SHARD, spec.noise_shape)
        tokens_BL = np.zeros((PAIRS_PER_SHARD, spec.num_tokens), dtype=spec.token_dtype)
        pairs = Pairs(index_B, noise_BLC, tokens_BL, np.asarray(label(index_B, spec.num_classes)))
        replace_shard(root, spec, shard, pairs, ROW_EXTRAS, None)


def opening(root: Path, num_shards: int) -> float:
    """Seconds to open the manifest."""
    from shards.dataset.manifest import Manifest

    began = time.monotonic()
    rows = Manifest.open(root).rows
    if len(rows) != num_shards:
        raise Failed(f"only {len(rows)} of {num_shards} rows were read")
    return time.monotonic() - began


def next_shard(root: Path, num_shards: int) -> float:
    """Seconds until `generate` has committed the first missing shard, checks included; removes that shard again."""
    from generate_pairs.generation.generate import generate
    from generate_pairs.generation.plan import refuse_fewer_pairs
    from shards.dataset.manifest_row import row_path, shard_name, shard_path

    config = settings(num_shards + 1)
    reports: list[tuple[float, int]] = []
    began = time.monotonic()
    refuse_fewer_pairs(config, root)
    generate(
        config,
        root,
        workers=0,
        report=lambda done, total, note: reports.append((time.monotonic(), done)),
        should_stop=lambda: False,
    )
    seconds = [at - began for at, done in reports if done > num_shards * PAIRS_PER_SHARD]
    name = shard_name(num_shards)
    for path in (row_path(root, name), shard_path(root, name)):
        path.unlink()
    return seconds[0]


def loading(root: Path, num_shards: int) -> float:
    """Seconds to load the teacher, which `next_shard` does twice."""
    from generate_pairs.teachers.checkpoints import load_teacher

    began = time.monotonic()
    load_teacher("digits")
    return time.monotonic() - began


def importing(root: Path, num_shards: int) -> float:
    """Seconds to import `generate`, mostly torch; not included in the other measurements."""
    began = time.monotonic()
    import generate_pairs.generation.generate  # noqa: F401

    return time.monotonic() - began


def streaming(root: Path, num_shards: int) -> float:
    """Seconds to open the manifest and read the first batch."""
    from shards.dataset.manifest import Manifest
    from shards.streaming.stream import PairStream

    began = time.monotonic()
    next(PairStream(root, Manifest.open(root).view(), BATCH_SIZE, SEED))
    return time.monotonic() - began


GOALS = (
    Goal("open, row by row", opening, 10.0, with_joined=False, megabytes=500.0),
    Goal("open, with the joined table", opening, 1.0, with_joined=True, megabytes=500.0),
    Goal("generate's next shard, row by row", next_shard, 5.0, with_joined=False),
    Goal("generate's next shard, with the joined table", next_shard, 5.0, with_joined=True),
    Goal("a stream's first batch, row by row", streaming, 10.0, with_joined=False),
    Goal("a stream's first batch, with the joined table", streaming, 5.0, with_joined=True),
)


def measured(measure: Callable[[Path, int], float], root: Path, num_shards: int) -> tuple[float, float]:
    """Seconds, and this process's peak memory in MB (rusage would include memory of the parent)."""
    seconds = measure(root, num_shards)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if peak is None:
        raise Failed("/proc/self/status contains no peak memory (VmHWM): this program needs Linux")
    return seconds, int(peak[1]) * 1024 / 1e6


def in_a_fresh_process(measure: Callable[[Path, int], float], root: Path, num_shards: int) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(measured, measure, root, num_shards).result()


def prepare(goal: Goal, root: Path) -> None:
    """Write or remove the joined table."""
    from shards.dataset.manifest import Manifest
    from shards.dataset.manifest_row import JOINED_FILE

    (root / JOINED_FILE).unlink(missing_ok=True)
    if goal.with_joined:
        Manifest.open(root).write_joined()


@click.command(cls=Script)
@click.option(
    "--shards",
    "num_shards",
    type=click.IntRange(min=40),
    default=10_000,
    show_default=True,
    help="Number of shards.",
)
@click.option("--work", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the data set.")
def main(num_shards: int, work: Path) -> None:
    """Simulate a data set of many shards and measure; exit with 1 if a measurement exceeds its limit."""
    if work.exists():
        raise Refused(f"--work {work} already exists: delete it, or choose another folder")
    began = time.monotonic()
    simulate(work, num_shards)
    make_first_window(work)
    click.echo(f"{num_shards:,} rows simulated in {time.monotonic() - began:.1f} s", err=True)
    table, exceeded = [], []
    for goal in GOALS:
        prepare(goal, work)
        seconds, megabytes = in_a_fresh_process(goal.measure, work, num_shards)
        allowed = "" if goal.megabytes is None else f"{goal.megabytes:.0f}"
        table.append([goal.name, f"{seconds:.2f}", f"{goal.seconds:.0f}", f"{megabytes:.0f}", allowed])
        if seconds > goal.seconds or megabytes > (goal.megabytes or megabytes):
            exceeded.append(goal.name)
    for name, measure in (("import torch and stage one", importing), ("load the teacher", loading)):
        seconds, megabytes = in_a_fresh_process(measure, work, num_shards)
        table.append([name, f"{seconds:.2f}", "", f"{megabytes:.0f}", ""])
    click.echo(markdown(HEADER, table))
    if exceeded:
        raise Failed(f"limit exceeded: {', '.join(exceeded)}")


if __name__ == "__main__":
    main()
