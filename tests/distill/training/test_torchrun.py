"""Processes of torchrun that are killed, all or one, and restarted give the bytes of an uninterrupted training."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

NUM_STEPS, INTERVAL = 240, 20
PATIENCE_SECONDS = 120
RECORD_EXIT_CODE = """
import os, sys
from pathlib import Path
from pipeline.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit as ended:
    Path(sys.argv[1], os.environ["RANK"]).write_text(str(ended.code or 0))
    raise
"""
"""Runs `tokenleap` and writes its exit code to a file, as torchrun does not report it."""


@dataclass(frozen=True)
class Torchrun:
    """Two processes under torchrun, in their own process group."""

    process: subprocess.Popen[str]
    out: Path
    folder: Path

    @property
    def step(self) -> int:
        """Step of the newest checkpoint; 0 without one."""
        marks = (self.out / "checkpoints").glob("[!.]*.json")
        return max((int(mark.stem.removeprefix("step-")) for mark in marks), default=0)

    @property
    def ended(self) -> bool:
        """Whether the training has ended."""
        return self.process.poll() is not None or (self.out / "student.safetensors").exists()

    def wait_for(self, step: int) -> None:
        """Wait for a checkpoint of this step or a newer one."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.step < step and not self.ended and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.step >= step, self.output()

    def world(self) -> list[psutil.Process]:
        """The training processes by rank."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return sorted((each for each in children if "RANK" in each.environ()), key=lambda each: each.environ()["RANK"])

    def codes(self) -> list[str]:
        """Exit codes by rank of the processes that were not killed."""
        return [path.read_text() for path in sorted((self.folder / "codes").iterdir())]

    def finish(self) -> int:
        """Wait for the end; returns torchrun's exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def output(self) -> str:
        return (self.folder / "out").read_text() + (self.folder / "err").read_text()


End = Callable[[Torchrun, random.Random], None]


@contextmanager
def torchrun(arguments: list[str], out: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[Torchrun]:
    """Run `tokenleap` in two processes; all are killed at the end of the context."""
    (folder / "codes").mkdir(parents=True)
    (folder / "record_exit_code.py").write_text(RECORD_EXIT_CODE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(folder / "record_exit_code.py"), str(folder / "codes"), *arguments]
    with (folder / "out").open("w") as stdout, (folder / "err").open("w") as stderr:
        process = subprocess.Popen(
            command, env=environment, stdout=stdout, stderr=stderr, text=True, start_new_session=True
        )
    try:
        yield Torchrun(process, out, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_one(run: Torchrun, generator: random.Random) -> None:
    """Kill one process; torchrun then ends the other."""
    generator.choice(run.world()).kill()
    assert run.finish() == 1, run.output()


def kill_all(run: Torchrun, generator: random.Random) -> None:
    for rank in run.world():
        rank.kill()
    assert run.finish() == 1, run.output()


def kill_the_tree(run: Torchrun, generator: random.Random) -> None:
    """Kill torchrun first, as when a node fails."""
    world = run.world()
    run.process.kill()
    for rank in world:
        rank.kill()
    assert run.finish() == -signal.SIGKILL


def terminate(run: Torchrun, generator: random.Random) -> None:
    """Send SIGTERM: all processes save and exit."""
    run.process.terminate()
    assert run.finish() != 0
    assert run.codes() == ["143", "143"], run.output()
    assert f"of {NUM_STEPS} steps are done and kept in" in run.output()


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("llamagen", (kill_one, terminate)),
        pytest.param("llamagen", (kill_one, kill_all, kill_the_tree, terminate), marks=pytest.mark.slow),
        pytest.param("var", (kill_one, kill_all, kill_the_tree, terminate), marks=pytest.mark.slow),
    ],
    ids=["briefly", "llamagen", "var"],
    indirect=["family"],
)
def test_killed_and_stopped_training_ends_in_the_same_bytes(
    forked: Any,
    distilling: Callable[..., list[str]],
    left_behind: Callable[[Path], Mapping[str, object]],
    environment: dict[str, str],
    ends: tuple[End, ...],
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {"num_steps": NUM_STEPS, "checkpoint_interval": INTERVAL}
    uninterrupted = forked(2, distilling(whole, **settings))
    assert uninterrupted.codes == [0, 0], uninterrupted.output(0)

    arguments = distilling(killed, **settings)
    steps_each = NUM_STEPS // len(ends)
    for number, end in enumerate(ends):
        with torchrun(arguments, killed, tmp_path / str(number), environment) as run:
            first_step = run.step
            # Wait for a new checkpoint, so that this process has trained.
            run.wait_for(max(first_step + 1, number * steps_each + generator.randrange(steps_each - 2 * INTERVAL)))
            time.sleep(generator.uniform(0, 0.1))
            assert not run.ended, run.output()
            assert len(run.world()) == 2
            end(run, generator)
        assert first_step < run.step < NUM_STEPS
        assert not (killed / "student.safetensors").exists()
    with torchrun(arguments, killed, tmp_path / "last", environment) as run:
        assert run.finish() == 0, run.output()
    assert run.codes() == ["0", "0"]
    (closing,) = (run.folder / "out").read_text().splitlines()
    assert closing.startswith(f"{killed}: {NUM_STEPS} steps are done, ")
    assert left_behind(killed) == left_behind(whole)
    assert len(left_behind(whole)["log"]["step"]) == NUM_STEPS
