"""Does a generation that is killed and let down by its file system end in the same bytes as one that never was?

Every run of `tokenleap generate` has a fresh folder, and its command is given again until it ends with 0. At first each
try takes a random number of workers, below a file system that fails at random (faults.py), while the driver, a worker
or all of them are killed (SIGKILL) at random moments; from try 7 on nothing is done to it any more.
Linux only. A seed fixes what is done and after how long, not how far the processes have come by then.

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
from killable_run import committed_rows, refuse_touched
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
MISTAKE = "mistake in tokenleap"


@dataclass
class ChaosRun:
    """One folder's way to its end.

    Attributes:
        number: which run.
        seed: of what is done to it.
        place: its folder.
        seconds: how long an untouched run takes, by the number of workers.
    """

    number: int
    seed: str
    place: Place
    seconds: dict[int, float]
    counts: Counter[str] = field(default_factory=Counter)
    rows: dict[str, tuple[int, str]] = field(default_factory=dict)

    def to_the_end(self, expected: dict[str, object]) -> list[str]:
        """Give the command until it ends with 0, and once more; returns the run's row of the table.

        Raises:
            Failed: it did not end, ended in other bytes, or something happened on the way that must not.
        """
        drivers: list[Driver] = []
        try:
            self._try_until_done(drivers)
        finally:
            _end({process for driver in drivers for process in driver.seen})
        self._finish_cleanly()
        log = self.place.log.read_text()
        if MISTAKE in log:
            raise Failed("a failure was told as a mistake in tokenleap, not as what it was")
        self._hold_against(expected)
        self.counts["faults"] = log.count(MARK)
        return [str(self.number), *(str(self.counts[name]) for name in HEADER[1:])]

    def _try_until_done(self, drivers: list[Driver]) -> None:
        """Give the command until it ends with 0; every try is added to `drivers`."""
        choice = random.Random(self.seed)
        for number in range(1, MAX_TRIES + 1):
            self.counts["tries"] += 1
            drivers.append(self._started(choice, number))
            code = self._accompanied(drivers[-1], choice, number)
            self.rows = refuse_touched(self.rows, committed_rows(self.place.root))
            if code == 0:
                return
        raise Failed(f"the command did not end with 0 in {MAX_TRIES} tries")

    def _started(self, choice: random.Random, number: int) -> Driver:
        workers = choice.randint(0, MAX_WORKERS)
        if number > TRIES_WITH_CHAOS:
            return Driver(self.place, workers)
        return Driver(self.place, workers, Faults(self.place.root, f"{self.seed}/{number}", FAULT_RATE))

    def _accompanied(self, driver: Driver, choice: random.Random, number: int) -> int | None:
        """Let a try live, and do to it what its seed says; returns its exit code, None where it was killed.

        Raises:
            Failed: it ended as it must not, or did not end.
        """
        began, touched = time.monotonic(), number <= TRIES_WITH_CHAOS
        victims = (
            choice.choices(("nobody", "driver", "workers", "both"), (2, 3, 3, 2))[0] if touched else "nobody"
        )
        length = self.seconds[driver.workers]
        if victims == "workers":
            for moment in sorted(choice.uniform(0.0, length) for _ in range(choice.randint(1, 4))):
                if (code := driver.wait(began + moment)) is not None:
                    return self._judged(code, touched)
                self._kill_one_worker(driver, choice)
        elif victims in {"driver", "both"}:
            if (code := driver.wait(began + choice.uniform(0.0, length))) is not None:
                return self._judged(code, touched)
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
        return self._judged(code, touched)

    def _kill_one_worker(self, driver: Driver, choice: random.Random) -> None:
        workers = sorted(driver.children(), key=lambda process: process.pid)
        if workers:
            with suppress(psutil.NoSuchProcess):
                choice.choice(workers).kill()
                self.counts["workers killed"] += 1

    def _judged(self, code: int, touched: bool) -> int:
        """A try that something was done to may fail, with 1, or have been killed inside a call on a file."""
        if code not in ({0, 1, -signal.SIGKILL} if touched else {0}):
            raise Failed(f"a try ended with exit code {code}")
        return code

    def _finish_cleanly(self) -> None:
        """Let the temporary files grow old, and give the command once more: it must clear them away."""
        old = time.time() - STALE_HOURS * 3600
        for path in self.place.temporaries():
            os.utime(path, (old, old))
        # A row and the temporary name that it was killed under are one file: some of them are older now.
        self.rows = committed_rows(self.place.root)
        if (code := Driver(self.place, 0).wait(time.monotonic() + TRY_SECONDS)) != 0:
            raise Failed(f"the command ended with {code} on a folder that was complete")
        self.rows = refuse_touched(self.rows, committed_rows(self.place.root))
        if left := self.place.temporaries():
            raise Failed(f"{len(left)} temporary files stay for ever, the first of them {left[0]}")

    def _hold_against(self, expected: dict[str, object]) -> None:
        found = self.place.pairs()
        if differing := [name for name in expected | found if expected.get(name) != found.get(name)]:
            raise Failed(f"not as in an untouched run: {', '.join(differing)}")
        if findings := verify(self.place.root):
            raise Failed(f"`tokenleap shards verify` finds {findings[0]}")


def _end(strays: set[psutil.Process]) -> None:
    """Workers outlive their killed driver, by a moment or, forked side by side, for ever: each then holds open the
    pipe by whose end the other would know. The last run must not meet them.
    """
    for process in strays:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while any(_lives(process) for process in strays):
        time.sleep(0.01)


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def untouched(work: Path) -> tuple[dict[str, object], dict[int, float]]:
    """The pairs as they should be, and the seconds of a run that nothing is done to, by the number of workers.

    Raises:
        Failed: such a run failed, or the pairs depend on the number of workers.
    """
    expected: dict[str, object] = {}
    seconds: dict[int, float] = {}
    for workers in range(MAX_WORKERS + 1):
        place, began = Place(work / f"untouched-{workers}"), time.monotonic()
        if (code := Driver(place, workers).wait(began + TRY_SECONDS)) != 0:
            raise Failed(f"an untouched run ended with {code}; {place.log} says why")
        seconds[workers] = time.monotonic() - began
        found = place.pairs()
        if found != (expected := expected or found):
            raise Failed(f"{place.root} holds other pairs than {work / 'untouched-0'}")
    return expected, seconds


def chaotic(
    number: int, seed: int, work: Path, seconds: dict[int, float], expected: dict[str, object]
) -> tuple[list[str], str]:
    """One run to its end: its row of the table, and what went wrong."""
    run = ChaosRun(number, f"{seed}/{number}", Place(work / f"run-{number:03d}"), seconds)
    try:
        cells = run.to_the_end(expected)
    except (Failed, Refused) as error:
        return [], f"run {number} of seed {seed}: {error} ({run.place.log})"
    run.place.delete()
    return cells, ""


def outcomes(
    runs: int, jobs: int, one: Callable[[int], tuple[list[str], str]]
) -> Iterator[tuple[list[str], str]]:
    """What became of every run, in their order, `jobs` of them at a time."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as executor:
        yield from executor.map(one, range(runs))


@click.command(cls=Script)
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Of kills, faults and numbers of workers.")
@click.option("--work", type=FolderPath, required=True, metavar="DIR", help="Folder of the runs' folders.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
def main(runs: int, seed: int, work: Path, jobs: int) -> None:
    """Let generations be killed and let down; exit with 1 where one ends otherwise than an untouched one."""
    if work.exists():
        raise Refused(f"{work} is there already: delete it, or name another --work")
    work = work.absolute()
    work.mkdir(parents=True)
    warm_up()
    expected, seconds = untouched(work)
    click.echo(
        f"untouched, by workers: {', '.join(f'{length:.1f} s' for length in seconds.values())}", err=True
    )
    table, failures = list[list[str]](), list[str]()
    one = partial(chaotic, seed=seed, work=work, seconds=seconds, expected=expected)
    for cells, failure in outcomes(runs, jobs, one):
        click.echo(failure or f"run {', '.join(cells)}", err=True)
        table, failures = table + [cells] * (not failure), failures + [failure] * bool(failure)
    totals = [str(sum(int(cells[column]) for cells in table)) for column in range(1, len(HEADER))]
    click.echo(markdown(HEADER, [*table, ["all", *totals]]))
    if failures:
        raise Failed(f"{len(failures)} of {runs} runs did not end as they should; {failures[0]}")
    click.echo(
        f"\nall {runs} runs of seed {seed} ended in the bytes of an untouched run, and verify is silent"
    )


if __name__ == "__main__":
    main()
