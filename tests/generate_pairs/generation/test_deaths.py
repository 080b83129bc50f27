"""Killed processes of every kind: the same command again generates exactly the missing shards, with the same bytes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from shards.dataset.verify import verify

SLOW = {"slow": 0.4}
"""A shard takes most of a second, so that a process can be killed during it."""

pytestmark = pytest.mark.parametrize("family", ["llamagen"], indirect=True)


@pytest.fixture
def clean(pairs_root: Path) -> dict[str, bytes]:
    """The shards of an undisturbed generation."""
    return {path.name: path.read_bytes() for path in (pairs_root / "shards").glob("[!.]*")}


def assert_completes(generation: Any, clean: dict[str, bytes], *arguments: object) -> None:
    """Check that the same command again generates the missing shards and changes no finished one."""
    before, begun = generation.rows(), generation.begun()
    generation.run(*arguments)
    assert before.items() <= generation.rows().items()
    assert generation.shards() == clean
    assert verify(generation.root) == []
    if generation.begun() > begun:
        assert generation.begun() == begun + len(clean) - len(before)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(generation: Any, clean: dict[str, bytes]) -> None:
    process = generation.start("--workers", 2, sabotage=SLOW)
    generation.wait_until(lambda: generation.begun() >= 2, process)
    os.kill(next(iter(generation.logs())), signal.SIGKILL)
    generation.ended(process, 0)
    assert generation.shards() == clean
    assert generation.begun() == len(clean) + 1


def test_workers_do_not_outlive_a_killed_driver(generation: Any, clean: dict[str, bytes]) -> None:
    process = generation.start("--workers", 2, sabotage={"slow": 60})
    generation.wait_until(lambda: generation.begun() == 2, process)
    workers = [psutil.Process(pid) for pid in generation.logs()]
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert_completes(generation, clean, "--workers", 2)


@pytest.mark.slow
def test_a_terminated_driver_finishes_the_running_shards(generation: Any, clean: dict[str, bytes]) -> None:
    """The signal also reaches the workers, as when Slurm ends a job."""
    process = generation.start("--workers", 2, sabotage=SLOW)
    generation.wait_until(lambda: generation.begun() == 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    messages = generation.ended(process, 143)
    assert "2 of 4 missing shards are made and kept" in messages
    assert "Resume with: tokenleap generate preset.toml" in messages
    assert len(generation.rows()) == 2
    assert not any(psutil.pid_exists(pid) for pid in generation.logs())
    assert_completes(generation, clean, "--workers", 2)


def test_a_unit_that_kills_every_worker_is_reported_and_the_others_are_made(
    generation: Any, clean: dict[str, bytes]
) -> None:
    messages = generation.run("--workers", 2, exit_code=1, sabotage={"kills": 2})
    assert "1 of 4 shards in pairs could not be made: pairs-000002: 4 workers died making it; " in messages
    log = next(path for path in (generation.root / "logs").glob("*.log") if f"{path} ends: " in messages)
    assert log.read_text().splitlines()[-1].endswith(" begins pairs-000002")
    assert " begins pairs-000002. The others are complete; run the same command again" in messages
    assert sorted(generation.rows()) == ["pairs-000000", "pairs-000001", "pairs-000003"]
    assert_completes(generation, clean, "--workers", 2)


def test_a_full_disk_ends_the_work_at_once(generation: Any, clean: dict[str, bytes]) -> None:
    messages = generation.run("--workers", 1, exit_code=1, sabotage={"full_after": 1})
    assert "no space left there; free some and run the same command again. 1 of 4 missing shards in" in messages
    assert generation.begun() == 2
    assert_completes(generation, clean, "--workers", 1)


@pytest.mark.slow
def test_two_concurrent_drivers_make_one_data_set(generation: Any, clean: dict[str, bytes]) -> None:
    both = [generation.start("--workers", 1, sabotage=SLOW) for _ in range(2)]
    for process in both:
        generation.ended(process, 0)
    assert generation.shards() == clean
    assert verify(generation.root) == []


@pytest.mark.slow
def test_a_killed_task_completes_with_the_same_command(generation: Any, clean: dict[str, bytes]) -> None:
    tasks = [("--task-index", index, "--task-count", 2) for index in range(2)]
    generation.run(*tasks[0])
    assert sorted(generation.rows()) == ["pairs-000000", "pairs-000002"]
    process = generation.start(*tasks[1], sabotage=SLOW)
    generation.wait_until(lambda: len(generation.rows()) == 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert_completes(generation, clean, *tasks[1])


def test_no_shard_starts_that_would_not_end_in_time(generation: Any, clean: dict[str, bytes]) -> None:
    messages = generation.run("--workers", 0, "--time-limit", "0:00:00", exit_code=143)
    assert "the next shard might not end before the time limit; 0 of 4 missing shards are made" in messages
    assert "Resume with: tokenleap generate preset.toml" in messages
    assert_completes(generation, clean, "--workers", 0)


@contextmanager
def dask(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler or a worker that this test starts itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=environment,
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
def test_a_lost_scheduler_is_reported_and_another_one_completes(generation: Any, clean: dict[str, bytes]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    environment = generation.environment(SLOW)
    scheduler = ["distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", address, "--nthreads", "2", "--no-dashboard"]
    with dask(environment, *scheduler) as running, dask(environment, *worker):
        generation.wait_until(lambda: answers(address))
        process = generation.start("--cluster", address)
        generation.wait_until(lambda: len(generation.rows()) >= 1, process)
        running.kill()
        messages = generation.ended(process, 1)
        assert f"the Dask scheduler at {address} is lost. " in messages
        assert "missing shards in pairs are made and kept" in messages
        assert messages.count("\n") <= 3
    assert len(generation.rows()) < len(clean)
    with dask(environment, *scheduler), dask(environment, *worker):
        generation.wait_until(lambda: answers(address))
        assert_completes(generation, clean, "--cluster", address)


def answers(address: str) -> bool:
    host, _, port = address.removeprefix("tcp://").partition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def test_a_scheduler_that_does_not_answer_is_refused(generation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    messages = generation.run("--cluster", "tcp://127.0.0.1:1", exit_code=2)
    assert "no Dask scheduler answers at tcp://127.0.0.1:1: start one with `dask scheduler`" in messages
