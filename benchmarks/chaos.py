"""Check that generations with killed processes and a failing file system produce the bytes of an undisturbed one.

Every run of `tokenleap generate` has a new folder, and its command is repeated until it ends with exit code 0. Each of
the first six tries uses a random number of workers and a file system that fails at random (faults.py), while the
driver, a worker or all of them are killed (SIGKILL) at random moments; later tries are undisturbed.
Linux only. A seed determines the faults and their times, but not the progress of the processes at these times.

    python benchmarks/chaos.py --runs 100 --seed 0 --work chaos
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import psutil
from faults import MARK, Faults
from forked_driver import Driver, Place, warm_up
from killable_run import committed_rows, refuse_rewritten
from script import Script, markdown

from pipeline.cli.options import FolderPath
from shards.core.errors import Failed, Refused
from shards.dataset.verify import verify

MAX_WORKERS = 3
FAULT_RATE = 0.03
TRIES_WITH_CHAOS = 6
MAX_TRIES = 8
TRY_SECONDS = 120.0
STALE_HOURS = 2
HEADER = ("run", "tries", "drivers killed", "workers killed", "faults")
BUG_REPORT = "This is a bug in tokenleap"


@dataclass
class ChaosRun:
    """One run with its tries.

    Attributes:
        number: number of the run.
        seed: seed of its kills and faults.
        place: its folder.
        seconds: duration of an undisturbed run, by the number of workers.
    """

    number: int
    seed: str
    place: Place
    seconds: dict[int, float]
    counts: Counter[str] = field(default_factory=Counter)
    rows: dict[str, tuple[int, str]] = field(default_factory=dict)

    def to_the_end(self, expected: dict[str, object]) -> list[str]:
        """Repeat the command until it ends with 0, and once more; return the run's row of the table.

        Raises:
            Failed: the run did not end, has other bytes, or a try failed in an unexpected way.
        """
        drivers: list[Driver] = []
        try:
            self._try_until_done(drivers)
        finally:
            _kill_all({process for driver in drivers for process in driver.seen})
        self._finish_cleanly()
        log = self.place.log.read_text()
        if BUG_REPORT in log:
            raise Failed("an expected failure was reported as a bug in tokenleap")
        self._check_result(expected)
        self.counts["faults"] = log.count(MARK)
        return [str(self.number), *(str(self.counts[name]) for name in HEADER[1:])]

    def _try_until_done(self, drivers: list[Driver]) -> None:
        """Repeat the command until it ends with 0; every try is added to `drivers`."""
        choice = random.Random(self.seed)
        for number in range(1, MAX_TRIES + 1):
            self.counts["tries"] += 1
            drivers.append(self._started(choice, number))
            code = self._run_try(drivers[-1], choice, number)
            self.rows = refuse_rewritten(self.rows, committed_rows(self.place.root))
            if code == 0:
                return
        raise Failed(f"the command did not end with 0 in {MAX_TRIES} tries")

    def _started(self, choice: random.Random, number: int) -> Driver:
        workers = choice.randint(0, MAX_WORKERS)
        if number > TRIES_WITH_CHAOS:
            return Driver(self.place, workers)
        return Driver(self.place, workers, Faults(self.place.root, f"{self.seed}/{number}", FAULT_RATE))

    def _run_try(self, driver: Driver, choice: random.Random, number: int) -> int | None:
        """Run a try with the kills of its seed; return its exit code, None if it was killed.

        Raises:
            Failed: the try ended with an unexpected exit code, or did not end.
        """
        began, disturbed = time.monotonic(), number <= TRIES_WITH_CHAOS
        victims = choice.choices(("none", "driver", "workers", "both"), (2, 3, 3, 2))[0] if disturbed else "none"
        length = self.seconds[driver.workers]
        if victims == "workers":
            for moment in sorted(choice.uniform(0.0, length) for _ in range(choice.randint(1, 4))):
                if (code := driver.wait(began + moment)) is not None:
                    return self._checked_exit_code(code, disturbed)
                self._kill_one_worker(driver, choice)
        elif victims in {"driver", "both"}:
            if (code := driver.wait(began + choice.uniform(0.0, length))) is not None:
                return self._checked_exit_code(code, disturbed)
            self.counts["drivers killed"] += 1
            if victims == "driver":
                os.kill(driver.pid, signal.SIGKILL)
            else:
                self.counts["workers killed"] += len(driver.children())
                driver.kill_all()
            driver.wait(time.monotonic() + TRY_SECONDS)
            return None
        code = driver.wait(began + TRY_SECONDS)
        if code is None:
            driver.kill_all()
            driver.wait(time.monotonic() + TRY_SECONDS)
            raise Failed(f"try {number} with {driver.workers} workers did not end in {TRY_SECONDS:.0f} s")
        return self._checked_exit_code(code, disturbed)

    def _kill_one_worker(self, driver: Driver, choice: random.Random) -> None:
        workers = sorted(driver.children(), key=lambda process: process.pid)
        if workers:
            with suppress(psutil.NoSuchProcess):
                choice.choice(workers).kill()
                self.counts["workers killed"] += 1

    def _checked_exit_code(self, code: int, disturbed: bool) -> int:
        """Check an exit code: a disturbed try may fail with 1 or be killed inside a call on a file."""
        if code not in ({0, 1, -signal.SIGKILL} if disturbed else {0}):
            raise Failed(f"a try ended with exit code {code}")
        return code

    def _finish_cleanly(self) -> None:
        """Set back the times of the temporary files and repeat the command, which must remove them."""
        old = time.time() - STALE_HOURS * 3600
        for path in self.place.temporaries():
            os.utime(path, (old, old))
        # A row and its temporary file may be the same file (hard link), so times of rows have changed.
        self.rows = committed_rows(self.place.root)
        if (code := Driver(self.place, 0).wait(time.monotonic() + TRY_SECONDS)) != 0:
            raise Failed(f"the command ended with {code} on a folder that was complete")
        self.rows = refuse_rewritten(self.rows, committed_rows(self.place.root))
        if left := self.place.temporaries():
            raise Failed(f"{len(left)} temporary files are never removed, the first is {left[0]}")

    def _check_result(self, expected: dict[str, object]) -> None:
        found = self.place.pairs()
        if differing := [name for name in expected | found if expected.get(name) != found.get(name)]:
            raise Failed(f"different from an undisturbed run: {', '.join(differing)}")
        if findings := verify(self.place.root):
            raise Failed(f"`tokenleap shards verify` reports {findings[0]}")


def _kill_all(strays: set[psutil.Process]) -> None:
    """Kill remaining workers before the last run.

    Workers normally end soon after their driver is killed. Forked workers may not: each keeps open the pipe whose end
    would stop the others.
    """
    for process in strays:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while any(_is_alive(process) for process in strays):
        time.sleep(0.01)


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def undisturbed(work: Path) -> tuple[dict[str, object], dict[int, float]]:
    """The expected pairs, and the seconds of an undisturbed run by the number of workers.

    Raises:
        Failed: an undisturbed run failed, or the pairs depend on the number of workers.
    """
    expected: dict[str, object] = {}
    seconds: dict[int, float] = {}
    for workers in range(MAX_WORKERS + 1):
        place, began = Place(work / f"undisturbed-{workers}"), time.monotonic()
        if (code := Driver(place, workers).wait(began + TRY_SECONDS)) != 0:
            raise Failed(f"an undisturbed run ended with exit code {code}; see {place.log}")
        seconds[workers] = time.monotonic() - began
        found = place.pairs()
        if found != (expected := expected or found):
            raise Failed(f"{place.root} contains other pairs than {work / 'undisturbed-0'}")
    return expected, seconds


def chaotic(
    number: int, seed: int, work: Path, seconds: dict[int, float], expected: dict[str, object]
) -> tuple[list[str], str]:
    """Run one generation to its end; return its row of the table and its failure message."""
    run = ChaosRun(number, f"{seed}/{number}", Place(work / f"run-{number:03d}"), seconds)
    try:
        cells = run.to_the_end(expected)
    except (Failed, Refused) as error:
        return [], f"run {number} of seed {seed}: {error} ({run.place.log})"
    run.place.delete()
    return cells, ""


def outcomes(runs: int, jobs: int, one: Callable[[int], tuple[list[str], str]]) -> Iterator[tuple[list[str], str]]:
    """The results of all runs in order, with `jobs` runs at a time."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as executor:
        yield from executor.map(one, range(runs))


@click.command(cls=Script)
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Number of runs.")
@click.option("--seed", default=0, show_default=True, help="Seed of kills, faults and numbers of workers.")
@click.option("--work", type=FolderPath, required=True, metavar="DIR", help="Folder of the runs' folders.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
def main(runs: int, seed: int, work: Path, jobs: int) -> None:
    """Disturb generations by kills and faults; exit with 1 if a result differs from an undisturbed run."""
    if work.exists():
        raise Refused(f"--work {work} already exists: delete it, or choose another folder")
    work = work.absolute()
    work.mkdir(parents=True)
    warm_up()
    expected, seconds = undisturbed(work)
    click.echo(f"undisturbed, by workers: {', '.join(f'{length:.1f} s' for length in seconds.values())}", err=True)
    table, failures = list[list[str]](), list[str]()
    one = partial(chaotic, seed=seed, work=work, seconds=seconds, expected=expected)
    for cells, failure in outcomes(runs, jobs, one):
        click.echo(failure or f"run {', '.join(cells)}", err=True)
        table, failures = table + [cells] * (not failure), failures + [failure] * bool(failure)
    totals = [str(sum(int(cells[column]) for cells in table)) for column in range(1, len(HEADER))]
    click.echo(markdown(HEADER, [*table, ["all", *totals]]))
    if failures:
        raise Failed(f"{len(failures)} of {runs} runs failed; first: {failures[0]}")
    click.echo(f"\nall {runs} runs of seed {seed} have the bytes of an undisturbed run, and verify reports nothing")


if __name__ == "__main__":
    main()
