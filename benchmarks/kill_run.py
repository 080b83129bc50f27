"""Is a run that was killed N times the same, byte for byte, as one that never was?

One run goes through untouched. A second one is killed (SIGKILL, the whole process group) at N random moments, one in
each N-th of the first one's wall time, and started again with the same command each time. The untouched
run makes its pairs in this process; the killed one takes 1, 2 and 0 workers in turn. Compared are the shards, the
student's export and the training log; committed rows of the manifest must outlive every kill untouched.

    python benchmarks/kill_run.py digits --kills 10 --seed 0 --work kills
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pyarrow.parquet
from killable_run import KillableRun, refuse_touched
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
    """When to kill: so many seconds into a phase, as the untouched run went."""

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
    """Kill a run at every moment in turn, then let it finish; returns the table of kills.

    Raises:
        Failed: the run failed, or a committed row of the manifest was written again.
    """
    table: list[list[str]] = []
    kept: dict[str, tuple[int, str]] = {}
    before = Moment("", 0.0)
    for number, moment in enumerate(planned, 1):
        # Pairs, steps and judged methods are kept.
        done = before.seconds if before.phase == moment.phase else 0.0
        workers = WORKERS[number % len(WORKERS)]
        lived = run.kill(moment.phase, moment.seconds - done, startup, workers)
        kept, before = refuse_touched(kept, run.rows()), moment
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
    refuse_touched(kept, run.rows())
    return table


def differences(whole: KillableRun, killed: KillableRun) -> list[str]:
    """Names of the results that are not the same."""
    expected, found = whole.results(), killed.results()
    names = [name for name in expected | found if expected.get(name) != found.get(name)]
    logs = [
        pyarrow.parquet.read_table(run.run_dir.metrics).drop_columns(CLOCK_COLUMNS) for run in (whole, killed)
    ]
    return names if logs[0].equals(logs[1]) else [*names, whole.run_dir.metrics.name]


@click.command(cls=Script)
@preset_argument
@click.option("--kills", type=click.IntRange(min=1), default=10, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--work", type=FolderPath, required=True, metavar="DIR", help="Folder of both runs.")
@set_option
def main(preset: str, kills: int, seed: int, work: Path, settings: tuple[str, ...]) -> None:
    """Run a preset untouched, then killed and resumed; exit with 1 where the results differ."""
    num_shards = compose(preset, settings).pairs.num_shards
    overridden = [word for setting in settings for word in ("--set", setting)]
    arguments = (preset, *overridden)
    whole, killed = (KillableRun(RunDir(work / name), arguments, num_shards) for name in ("whole", "killed"))
    for run in (whole, killed):
        if run.run_dir.root.exists():
            raise Refused(f"{run.run_dir.root} is there already: delete it, or name another --work")
    work.mkdir(parents=True, exist_ok=True)
    wall = whole.finish(WORKERS[0])
    seconds = whole.run_dir.read_json(whole.run_dir.seconds)
    phases = ", ".join(f"{phase} {length:.1f} s" for phase, length in seconds.items())
    click.echo(f"untouched: {phases}, {wall:.1f} s in all\n")
    table = kill_and_resume(killed, moments(seconds, kills, seed), wall - sum(seconds.values()))
    click.echo(markdown(HEADER, table))
    if differing := differences(whole, killed):
        raise Failed(f"after {kills} kills these differ: {', '.join(differing)}")
    click.echo(f"\nafter {kills} kills all {len(whole.results())} files and the training log are the same")


if __name__ == "__main__":
    main()
