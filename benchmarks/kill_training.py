"""Check that a multi-process training that was killed N times has the same results as an uninterrupted one.

The first training is uninterrupted. The second one is killed (SIGKILL) at N random moments, one in each N-th part of its
steps, and restarted with the same command each time. The kills alternate: one process, all processes, torchrun with all
processes. Compared are the export, the newest checkpoint with its mark, and the log without its time columns.

    tokenleap generate digits --out pairs --num-pairs 20000
    python benchmarks/kill_training.py digits --pairs pairs --kills 20 --num-steps 400 --work kills \
        --set train.threads=1 --set train.checkpoint_interval=10
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
from killable_run import EXPORT, POLL_SECONDS
from script import Script, markdown

from distill.training.metrics import CLOCK_COLUMNS, read_metrics
from pipeline.cli.options import FolderPath, num_steps_option, preset_argument, set_option
from shards.core.errors import Failed, Refused
from shards.storage.files import list_names, sha256_file

HEADER = ("kill", "died", "after step", "seconds later", "checkpoint kept", "seconds lived")
LONGEST_SECONDS = 1.0
"""Longest time between the awaited checkpoint and the kill."""


@dataclass(frozen=True)
class KillableTraining:
    """A student's folder and its training command."""

    out: Path
    command: tuple[str, ...]

    def finish(self) -> float:
        """Train to the end; return the wall time in seconds.

        Raises:
            Failed: the training failed.
        """
        began = time.monotonic()
        with self._started() as process:
            if process.wait():
                raise self._failure(process)
        return time.monotonic() - began

    def kill(self, kill: Callable[[subprocess.Popen[bytes]], None], step: int, delay: float) -> float:
        """Start the training and kill it `delay` seconds after a new checkpoint of at least `step`.

        Returns:
            The seconds between start and kill.

        Raises:
            Failed: the training ended before.
        """
        began, step = time.monotonic(), max(step, self.step + 1)
        with self._started() as process:
            while self.step < step and process.poll() is None:
                time.sleep(POLL_SECONDS)
            time.sleep(delay)
            if process.poll() is not None or self._exported:
                raise self._failure(process)
            kill(process)
            process.wait()
        return time.monotonic() - began

    @property
    def step(self) -> int:
        """Of the newest checkpoint, 0 where there is none."""
        names = list_names(self.out / "checkpoints", ".json")
        return int(Path(names[-1]).stem.removeprefix("step-")) if names else 0

    def results(self) -> dict[str, str]:
        """sha256 by name of the files that no kill may change."""
        newest = [f"checkpoints/step-{self.step:06d}.{suffix}" for suffix in ("safetensors", "json")]
        return {name: sha256_file(self.out / name) for name in (*EXPORT, *newest)}

    @property
    def _exported(self) -> bool:
        return (self.out / EXPORT[0]).exists()

    @property
    def _log(self) -> Path:
        return self.out.with_suffix(".log")

    @contextmanager
    def _started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the training; at the end of the block its process group is killed."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [*self.command, "--out", str(self.out)], stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _failure(self, process: subprocess.Popen[bytes]) -> Failed:
        return Failed(
            f"the training ended too early, with exit code {process.poll()}; see {self._log}. "
            "If it was only too short for this number of kills, increase --num-steps"
        )


def world(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The training processes of a torchrun."""
    descendants = psutil.Process(process.pid).children(recursive=True)
    return [each for each in descendants if "RANK" in each.environ()]


def ways(chosen: random.Random) -> Mapping[str, Callable[[subprocess.Popen[bytes]], None]]:
    """The kinds of kill, by name."""

    def all_ranks(process: subprocess.Popen[bytes]) -> None:
        for rank in world(process):
            rank.kill()

    def everything(process: subprocess.Popen[bytes]) -> None:
        ranks = world(process)
        process.kill()
        for rank in ranks:
            rank.kill()

    return {
        "one": lambda process: chosen.choice(world(process)).kill(),
        "all": all_ranks,
        "torchrun too": everything,
    }


def kill_and_resume(training: KillableTraining, kills: int, num_steps: int, seed: int) -> list[list[str]]:
    """Kill a training `kills` times; return the table of kills.

    Raises:
        Failed: the training ended before a kill.
    """
    chosen, table = random.Random(seed), list[list[str]]()
    kinds = list(ways(chosen).items())
    for number in range(kills):
        name, kill = kinds[number % len(kinds)]
        step, delay = int((number + chosen.random()) / kills * num_steps), chosen.uniform(0, LONGEST_SECONDS)
        lived = training.kill(kill, step, delay)
        table.append([str(number + 1), name, str(step), f"{delay:.2f}", str(training.step), f"{lived:.1f}"])
        click.echo(f"kill {', '.join(table[-1])}", err=True)
    return table


def differences(whole: KillableTraining, killed: KillableTraining) -> list[str]:
    """Names of the results that differ."""
    expected, found = whole.results(), killed.results()
    names = [name for name in expected | found if expected.get(name) != found.get(name)]
    logs = [read_metrics(each.out / "metrics").drop_columns(list(CLOCK_COLUMNS)) for each in (whole, killed)]
    return names if logs[0].equals(logs[1]) else [*names, "metrics"]


def distill_command(preset: str, pairs: Path, processes: int, options: Sequence[str]) -> tuple[str, ...]:
    """The command of `tokenleap distill` under torchrun."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    return (*torchrun, "-m", "pipeline.cli", "distill", preset, "--pairs", str(pairs), *options)


@click.command(cls=Script)
@preset_argument
@click.option("--pairs", type=FolderPath, required=True, help="The pair data set.")
@click.option("--size", type=click.IntRange(min=1), metavar="N", help="As in `tokenleap distill`.")
@click.option("--kills", type=click.IntRange(min=1), default=20, show_default=True, help="Number of kills.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Number of training processes.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the moments of the kills.")
@click.option("--work", type=FolderPath, required=True, metavar="DIR", help="Folder of both trainings.")
@num_steps_option
@set_option
def main(
    preset: str,
    pairs: Path,
    size: int | None,
    kills: int,
    processes: int,
    seed: int,
    work: Path,
    num_steps: int | None,
    settings: tuple[str, ...],
) -> None:
    """Train uninterrupted, then with kills; exit with 1 if the results differ."""
    if work.exists():
        raise Refused(f"--work {work} already exists: delete it, or choose another folder")
    options = [] if size is None else ["--size", str(size)]
    options += [] if num_steps is None else ["--num-steps", str(num_steps)]
    options += [word for setting in settings for word in ("--set", setting)]
    command = distill_command(preset, pairs, processes, options)
    whole, killed = (KillableTraining(work / name, command) for name in ("whole", "killed"))
    work.mkdir(parents=True)
    seconds = whole.finish()
    click.echo(f"uninterrupted: {whole.step} steps in {seconds:.1f} s\n")
    table = kill_and_resume(killed, kills, whole.step, seed)
    killed.finish()
    click.echo(markdown(HEADER, table))
    if differing := differences(whole, killed):
        raise Failed(f"after {kills} kills these differ: {', '.join(differing)}")
    click.echo(f"\nafter {kills} kills all {len(whole.results())} files and the training log are the same")


if __name__ == "__main__":
    main()
