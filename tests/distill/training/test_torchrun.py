"""Processes of torchrun that are killed, all or one, and started again end in the bytes of those that never were."""

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
REMEMBERING = """
import os, sys
from pathlib import Path
from pipeline.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit as ended:
    Path(sys.argv[1], os.environ["RANK"]).write_text(str(ended.code or 0))
    raise
"""
"""What each process runs: `tokenleap`, whose exit code torchrun would keep to itself."""


@dataclass(frozen=True)
class Torchrun:
    """Two processes that torchrun watches over, in a process group of their own."""

    process: subprocess.Popen[str]
    out: Path
    folder: Path

    @property
    def step(self) -> int:
        """Of the newest checkpoint, 0 where there is none."""
        marks = (self.out / "checkpoints").glob("[!.]*.json")
        return max((int(mark.stem.removeprefix("step-")) for mark in marks), default=0)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to be killed in the middle of."""
        return self.process.poll() is not None or (self.out / "student.safetensors").exists()

    def wait_for(self, step: int) -> None:
        """Go on when a checkpoint of this step, or a newer one, is there."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.step < step and not self.ended and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.step >= step, self.said()

    def world(self) -> list[psutil.Process]:
        """The processes that train, by rank."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return sorted(
            (each for each in found if "RANK" in each.environ()), key=lambda each: each.environ()["RANK"]
        )

    def codes(self) -> list[str]:
        """Exit codes of the processes that ended by themselves, by rank."""
        return [path.read_text() for path in sorted((self.folder / "codes").iterdir())]

    def finish(self) -> int:
        """Wait for the end; torchrun's exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def said(self) -> str:
        return (self.folder / "out").read_text() + (self.folder / "err").read_text()


End = Callable[[Torchrun, random.Random], None]


@contextmanager
def torchrun(
    arguments: list[str], out: Path, folder: Path, environment: Mapping[str, str]
) -> Iterator[Torchrun]:
    """`tokenleap` in two processes, none of which outlives the block."""
    (folder / "codes").mkdir(parents=True)
    (folder / "remembering.py").write_text(REMEMBERING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(folder / "remembering.py"), str(folder / "codes"), *arguments]
    with (folder / "out").open("w") as said, (folder / "err").open("w") as complained:
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=complained, text=True, start_new_session=True
        )
    try:
        yield Torchrun(process, out, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_one(run: Torchrun, chosen: random.Random) -> None:
    """Torchrun then ends the other one."""
    chosen.choice(run.world()).kill()
    assert run.finish() == 1, run.said()


def kill_all(run: Torchrun, chosen: random.Random) -> None:
    for rank in run.world():
        rank.kill()
    assert run.finish() == 1, run.said()


def kill_the_tree(run: Torchrun, chosen: random.Random) -> None:
    """As when a node is lost: torchrun itself first."""
    world = run.world()
    run.process.kill()
    for rank in world:
        rank.kill()
    assert run.finish() == -signal.SIGKILL


def terminate(run: Torchrun, chosen: random.Random) -> None:
    """All processes save, and end as after SIGTERM."""
    run.process.terminate()
    assert run.finish() != 0
    assert run.codes() == ["143", "143"], run.said()
    assert f"of {NUM_STEPS} steps are done and kept in" in run.said()


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
def test_killed_and_stopped_it_ends_in_the_same_bytes(
    forked: Any,
    distilling: Callable[..., list[str]],
    left_behind: Callable[[Path], Mapping[str, object]],
    environment: dict[str, str],
    ends: tuple[End, ...],
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {"num_steps": NUM_STEPS, "checkpoint_interval": INTERVAL}
    untouched = forked(2, distilling(whole, **settings))
    assert untouched.codes == [0, 0], untouched.said(0)

    arguments = distilling(killed, **settings)
    micro_batch = NUM_STEPS // len(ends)
    for number, end in enumerate(ends):
        with torchrun(arguments, killed, tmp_path / str(number), environment) as run:
            began_at = run.step
            # Another checkpoint than the one that it began with, so that this very process has trained.
            run.wait_for(
                max(began_at + 1, number * micro_batch + chosen.randrange(micro_batch - 2 * INTERVAL))
            )
            time.sleep(chosen.uniform(0, 0.1))
            assert not run.ended, run.said()
            assert len(run.world()) == 2
            end(run, chosen)
        assert began_at < run.step < NUM_STEPS
        assert not (killed / "student.safetensors").exists()
    with torchrun(arguments, killed, tmp_path / "last", environment) as run:
        assert run.finish() == 0, run.said()
    assert run.codes() == ["0", "0"]
    (closing,) = (run.folder / "out").read_text().splitlines()
    assert closing.startswith(f"{killed}: {NUM_STEPS} steps in ")
    assert left_behind(killed) == left_behind(whole)
    assert len(left_behind(whole)["log"]["step"]) == NUM_STEPS
