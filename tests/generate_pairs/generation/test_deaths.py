"""Every way to die, with real processes: the same command again makes exactly what is missing, to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from shards.dataset.verify import verify

REPOSITORY = Path(__file__).resolve().parents[3]
SABOTAGE = Path(__file__).with_name("sabotage")
SLOW = {"slow": 0.4}
"""A shard then takes most of a second, so that there is a middle to die in."""

LONGEST_SECONDS = 300
"""For a command that takes a tenth of it where nothing else runs."""

pytestmark = pytest.mark.parametrize("family", ["llamagen"], indirect=True)


class Generation:
    """`tokenleap generate` of four shards into one folder, as often as it takes."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.root = folder, folder / "pairs"
        (folder / "preset.toml").write_text(
            f'[teacher]\nname = "{teacher}"\nguidance_scale = 1.5\n[pairs]\nnum_pairs = 96\n'
            "pairs_per_shard = 32\nbatch_size = 16\nseed = 3\nsolver_steps = 16\n"
        )

    def start(self, *arguments: object, sabotage: dict[str, object] | None = None) -> subprocess.Popen[str]:
        """The command in its own process group."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "generate", "preset.toml", "--out", "pairs"]
            + [str(argument) for argument in arguments],
            cwd=self.folder,
            env=environment(sabotage),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def run(self, *arguments: object, exit_code: int = 0, sabotage: dict[str, object] | None = None) -> str:
        """The command to its end; returns what it told."""
        return ended(self.start(*arguments, sabotage=sabotage), exit_code)

    def rows(self) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in (self.root / "manifest").glob("[!.]*")}

    def shards(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.root / "shards").glob("[!.]*")}

    def logs(self) -> dict[int, str]:
        """What every worker wrote, by its process id."""
        return {
            int(path.stem.rpartition("-")[2]): path.read_text() for path in (self.root / "logs").glob("*.log")
        }

    def begun(self) -> int:
        """Shards begun, counted again when they were begun again."""
        return "".join(self.logs().values()).count(" begins ")


def environment(sabotage: dict[str, object] | None = None) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{SABOTAGE}:{REPOSITORY}",
        "SABOTAGE": json.dumps(sabotage or {}),
        "OMP_NUM_THREADS": "1",
        # As on a machine where workers take long to start: Dask would have given them up by then.
        "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "10ms",
    }


def ended(process: subprocess.Popen[str], exit_code: int) -> str:
    """Waits for a command's end; returns what it told."""
    try:
        _, told = process.communicate(timeout=LONGEST_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == exit_code, told
    return told


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Waits for a moment, of the life of a process where one is given."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not is_true():
        over = process is not None and process.poll() is not None
        if over or time.monotonic() > deadline:
            if process is not None and not over:
                os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"the moment did not come: {process.communicate()[1] if process else ''}")
        time.sleep(0.02)


@pytest.fixture
def generation(teacher_path: Path, tmp_path: Path) -> Generation:
    return Generation(tmp_path, teacher_path)


@pytest.fixture
def clean(pairs_root: Path) -> dict[str, bytes]:
    """The shards of a generation that nothing befell."""
    return {path.name: path.read_bytes() for path in (pairs_root / "shards").glob("[!.]*")}


def assert_completes(
    generation: Generation, clean: dict[str, bytes], *arguments: object, told: str = ""
) -> None:
    """The same command again makes what is missing and touches nothing that is done."""
    before, begun = generation.rows(), generation.begun()
    generation.run(*arguments)
    assert before.items() <= generation.rows().items()
    assert generation.shards() == clean
    assert verify(generation.root) == []
    if generation.begun() > begun:
        assert generation.begun() == begun + len(clean) - len(before)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(generation: Generation, clean: dict[str, bytes]) -> None:
    process = generation.start("--workers", 2, sabotage=SLOW)
    wait_until(lambda: generation.begun() >= 2, process)
    os.kill(next(iter(generation.logs())), signal.SIGKILL)
    ended(process, 0)
    assert generation.shards() == clean
    assert generation.begun() == len(clean) + 1


def test_workers_do_not_outlive_a_killed_driver(generation: Generation, clean: dict[str, bytes]) -> None:
    process = generation.start("--workers", 2, sabotage={"slow": 60})
    wait_until(lambda: generation.begun() == 2, process)
    workers = [psutil.Process(pid) for pid in generation.logs()]
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert_completes(generation, clean, "--workers", 2)


def test_told_to_end_it_finishes_what_is_under_way(generation: Generation, clean: dict[str, bytes]) -> None:
    """The signal reaches the workers, too, as it does when Slurm ends a job."""
    process = generation.start("--workers", 2, sabotage=SLOW)
    wait_until(lambda: generation.begun() == 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    told = ended(process, 143)
    assert "2 of 4 missing shards are made and kept" in told
    assert "Go on with: tokenleap generate preset.toml" in told
    assert len(generation.rows()) == 2
    assert not any(psutil.pid_exists(pid) for pid in generation.logs())
    assert_completes(generation, clean, "--workers", 2)


def test_a_unit_that_kills_every_worker_is_told_and_the_rest_is_made(
    generation: Generation, clean: dict[str, bytes]
) -> None:
    told = generation.run("--workers", 2, exit_code=1, sabotage={"kills": 2})
    assert "1 of 4 shards in pairs could not be made: pairs-000002: 4 workers died making it; " in told
    log = next(path for path in (generation.root / "logs").glob("*.log") if f"{path} ends: " in told)
    assert log.read_text().splitlines()[-1].endswith(" begins pairs-000002")
    assert " begins pairs-000002. The rest are done; the same command makes what is missing" in told
    assert sorted(generation.rows()) == ["pairs-000000", "pairs-000001", "pairs-000003"]
    assert_completes(generation, clean, "--workers", 2)


def test_a_full_disk_ends_the_work_at_once(generation: Generation, clean: dict[str, bytes]) -> None:
    told = generation.run("--workers", 1, exit_code=1, sabotage={"full_after": 1})
    assert "no space left there; free some and run the same command again. 1 of 4 missing shards in" in told
    assert generation.begun() == 2
    assert_completes(generation, clean, "--workers", 1)


@pytest.mark.slow
def test_two_drivers_at_once_make_one_data_set(generation: Generation, clean: dict[str, bytes]) -> None:
    both = [generation.start("--workers", 1, sabotage=SLOW) for _ in range(2)]
    for process in both:
        ended(process, 0)
    assert generation.shards() == clean
    assert verify(generation.root) == []


def test_tasks_without_a_driver_of_which_one_is_killed(
    generation: Generation, clean: dict[str, bytes]
) -> None:
    tasks = [("--task-index", index, "--task-count", 2) for index in range(2)]
    generation.run(*tasks[0])
    assert sorted(generation.rows()) == ["pairs-000000", "pairs-000002"]
    process = generation.start(*tasks[1], sabotage=SLOW)
    wait_until(lambda: len(generation.rows()) == 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert_completes(generation, clean, *tasks[1])


def test_no_shard_is_begun_that_would_not_end_in_time(
    generation: Generation, clean: dict[str, bytes]
) -> None:
    told = generation.run("--workers", 0, "--time-limit", "0:00:00", exit_code=143)
    assert "the next shard might not end before the time limit; 0 of 4 missing shards are made" in told
    assert "Go on with: tokenleap generate preset.toml" in told
    assert_completes(generation, clean, "--workers", 0)


@contextmanager
def dask(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler or a worker that someone else runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=environment(SLOW),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_lost_scheduler_is_told_and_another_one_completes(
    generation: Generation, clean: dict[str, bytes]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    scheduler = ["distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", address, "--nthreads", "2", "--no-dashboard"]
    with dask(*scheduler) as running, dask(*worker):
        wait_until(lambda: answers(address))
        process = generation.start("--cluster", address)
        wait_until(lambda: len(generation.rows()) >= 1, process)
        running.kill()
        told = ended(process, 1)
        assert f"the Dask scheduler at {address} is lost. " in told
        assert "missing shards in pairs are made and kept" in told
        assert told.count("\n") <= 3
    assert len(generation.rows()) < len(clean)
    with dask(*scheduler), dask(*worker):
        wait_until(lambda: answers(address))
        assert_completes(generation, clean, "--cluster", address)


def answers(address: str) -> bool:
    host, _, port = address.removeprefix("tcp://").partition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def test_a_scheduler_that_does_not_answer_is_refused(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    told = generation.run("--cluster", "tcp://127.0.0.1:1", exit_code=2)
    assert "no Dask scheduler answers at tcp://127.0.0.1:1: start one with `dask scheduler`" in told
