"""Check that a run that was killed N times has the same results, byte for byte, as an uninterrupted one.

The first run is uninterrupted. The second one is killed (SIGKILL to the process group) at N random moments, one in
each N-th part of the first one's wall time, and restarted with the same command each time. The uninterrupted
run makes its pairs in its own process; the killed one uses 1, 2 and 0 workers in turn. Compared are the shards, the
student's export and the training log. Committed rows of the manifest must not change after a kill.

    python benchmarks/kill_run.py digits --kills 10 --seed 0 --work kills
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pyarrow.parquet
from killable_run import KillableRun, refuse_rewritten
from script import Script, markdown

from distill.training.metrics import CLOCK_COLUMNS
from pipeline.cli.options import FolderPath, preset_argument, set_option
from pipeline.config.run_config import compose
from pipeline.run_folder.run_dir import RunDir
from shards.core.errors import Failed, Refused

WORKERS = (0, 1, 2)
HEADER = ("kill", "phase", "workers", "seconds in", "seconds lived", "rows", "steps kept")


@dataclass(frozen=True)
class Moment:
    """When to kill: seconds after the start of a phase, in the time of the uninterrupted run."""

    phase: str
    seconds: float


def moments(seconds: Mapping[str, float], kills: int, seed: int) -> list[Moment]:
    """One random moment in each of `kills` equal parts of the phases' seconds, in order."""
    generator, total = random.Random(seed), sum(seconds.values())
    return [_moment(seconds, (kill + generator.random()) / kills * total) for kill in range(kills)]


def _moment(seconds: Mapping[str, float], at: float) -> Moment:
    for phase, length in seconds.items():
        if at < length:
            return Moment(phase, at)
        at -= length
    return Moment(phase, length)


def kill_and_resume(run: KillableRun, planned: list[Moment], startup: float) -> list[list[str]]:
    """Kill a run at every moment in turn, then let it finish; return the table of kills.

    Raises:
        Failed: the run failed, or a committed row of the manifest was rewritten.
    """
    table: list[list[str]] = []
    kept: dict[str, tuple[int, str]] = {}
    before = Moment("", 0.0)
    for number, moment in enumerate(planned, 1):
        # Pairs, training steps and evaluated methods are kept after a kill.
        done = before.seconds if before.phase == moment.phase else 0.0
        workers = WORKERS[number % len(WORKERS)]
        lived = run.kill(moment.phase, moment.seconds - done, startup, workers)
        kept, before = refuse_rewritten(kept, run.rows()), moment
        cells = [
            moment.phase,
            str(workers),
            f"{moment.seconds:.1f}",
            f"{lived:.1f}",
            str(len(kept)),
            str(run.step),
        ]
        table.append([str(number), *cells])
        click.echo(f"kill {number}: {', '.join(cells)}", err=True)
    run.finish(WORKERS[-1])
    refuse_rewritten(kept, run.rows())
    return table


def differences(whole: KillableRun, killed: KillableRun) -> list[str]:
    """Names of the results that differ."""
    expected, found = whole.results(), killed.results()
    names = [name for name in expected | found if expected.get(name) != found.get(name)]
    logs = [pyarrow.parquet.read_table(run.run_dir.metrics).drop_columns(CLOCK_COLUMNS) for run in (whole, killed)]
    return names if logs[0].equals(logs[1]) else [*names, whole.run_dir.metrics.name]


@click.command(cls=Script)
@preset_argument
@click.option("--kills", type=click.IntRange(min=1), default=10, show_default=True, help="Number of kills.")
@click.option("--seed", default=0, show_default=True, help="Seed of the moments of the kills.")
@click.option("--work", type=FolderPath, required=True, metavar="DIR", help="Folder of both runs.")
@set_option
def main(preset: str, kills: int, seed: int, work: Path, settings: tuple[str, ...]) -> None:
    """Run a preset uninterrupted, then with kills; exit with 1 if the results differ."""
    num_shards = compose(preset, settings).pairs.num_shards
    overridden = [word for setting in settings for word in ("--set", setting)]
    arguments = (preset, *overridden)
    whole, killed = (KillableRun(RunDir(work / name), arguments, num_shards) for name in ("whole", "killed"))
    for run in (whole, killed):
        if run.run_dir.root.exists():
            raise Refused(f"--work: {run.run_dir.root} already exists: delete it, or choose another folder")
    work.mkdir(parents=True, exist_ok=True)
    wall = whole.finish(WORKERS[0])
    seconds = whole.run_dir.read_json(whole.run_dir.seconds)
    phases = ", ".join(f"{phase} {length:.1f} s" for phase, length in seconds.items())
    click.echo(f"uninterrupted: {phases}, {wall:.1f} s in total\n")
    table = kill_and_resume(killed, moments(seconds, kills, seed), wall - sum(seconds.values()))
    click.echo(markdown(HEADER, table))
    if differing := differences(whole, killed):
        raise Failed(f"after {kills} kills these differ: {', '.join(differing)}")
    click.echo(f"\nafter {kills} kills all {len(whole.results())} files and the training log are the same")


if __name__ == "__main__":
    main()
