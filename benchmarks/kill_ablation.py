"""Check that an ablation that was killed N times produces the same table, byte for byte, as an uninterrupted one.

The first ablation runs uninterrupted, one cell after another. The second one is killed (SIGKILL to the process group)
at N random moments, one in each N-th part of all evaluations, and restarted with the same command; it alternates
between 0 and 2 workers.

    tokenleap generate digits --out pairs --num-pairs 2000
    python benchmarks/kill_ablation.py digits --pairs pairs --sizes 500,1000,2000 --num-steps 60 --kills 10 --work kills
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import click
from killable_run import started
from script import Script, markdown

from pipeline.cli.options import FolderPath, num_steps_option, preset_argument, set_option
from shards.core.errors import Failed, Refused

WORKERS = (0, 2)
LONGEST_SECONDS = 1.5
"""Longest time between the awaited evaluation and the kill."""


def num_evaluations(out: Path) -> int:
    """Number of finished evaluations of all cells."""
    return len(list(out.glob("cells/*/curve/[!.]*.json")))


def finish(arguments: list[str], out: Path, workers: int) -> float:
    """Run to the end; return its wall time in seconds.

    Raises:
        Failed: the ablation failed.
    """
    began, log = time.monotonic(), out.with_suffix(".log")
    with started([*arguments, "--out", str(out), "--workers", str(workers)], log) as process:
        if process.wait():
            raise Failed(f"the ablation ended with exit code {process.returncode}; see {log}")
    return time.monotonic() - began


def kill(arguments: list[str], out: Path, workers: int, target: int, delay: float) -> None:
    """Start the ablation and kill it `delay` seconds after its evaluation number `target`.

    Raises:
        Failed: it failed before.
    """
    log = out.with_suffix(".log")
    with started([*arguments, "--out", str(out), "--workers", str(workers)], log) as process:
        while num_evaluations(out) < target and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is not None and process.returncode:
            raise Failed(f"the ablation ended with exit code {process.returncode}; see {log}")


@click.command(cls=Script)
@preset_argument
@click.option("--pairs", type=FolderPath, required=True, help="The pair data set.")
@click.option("--sizes", required=True, help="As in `tokenleap ablate`.")
@click.option("--seeds", default=2, show_default=True, help="As in `tokenleap ablate`.")
@click.option("--kills", type=click.IntRange(min=1), default=10, show_default=True, help="Number of kills.")
@click.option("--seed", default=0, show_default=True, help="Seed of the moments of the kills.")
@click.option("--work", type=FolderPath, required=True, metavar="DIR", help="Folder of both ablations.")
@num_steps_option
@set_option
def main(
    preset: str,
    pairs: Path,
    sizes: str,
    seeds: int,
    kills: int,
    seed: int,
    work: Path,
    num_steps: int | None,
    settings: tuple[str, ...],
) -> None:
    """Ablate uninterrupted, then with kills; exit with 1 if the tables differ."""
    whole, killed, chosen = work / "whole", work / "killed", random.Random(seed)
    if work.exists():
        raise Refused(f"--work {work} already exists: delete it, or choose another folder")
    work.mkdir(parents=True)
    arguments = ["ablate", preset, "--pairs", str(pairs), "--sizes", sizes, "--seeds", str(seeds)]
    arguments += [] if num_steps is None else ["--num-steps", str(num_steps)]
    arguments += [word for setting in settings for word in ("--set", setting)]
    seconds = finish(arguments, whole, WORKERS[0])
    total = num_evaluations(whole)
    click.echo(f"uninterrupted: {total} evaluations in {seconds:.1f} s\n")
    table = []
    for number in range(kills):
        workers = WORKERS[number % len(WORKERS)]
        target, delay = int((number + chosen.random()) / kills * total), chosen.uniform(0, LONGEST_SECONDS)
        kill(arguments, killed, workers, target, delay)
        table.append([str(number + 1), str(workers), str(target), f"{delay:.2f}", str(num_evaluations(killed))])
        click.echo(f"kill {', '.join(table[-1])}", err=True)
    finish(arguments, killed, WORKERS[0])
    click.echo(markdown(("kill", "workers", "after evaluation", "seconds later", "evaluations kept"), table))
    if (whole / "ablation.parquet").read_bytes() != (killed / "ablation.parquet").read_bytes():
        raise Failed(f"after {kills} kills the tables in {whole} and {killed} differ")
    click.echo(f"\nafter {kills} kills ablation.parquet is the same, byte for byte")


if __name__ == "__main__":
    main()
