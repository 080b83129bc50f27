"""Runs `tokenleap generate` in processes that the tests stop and kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SABOTAGE = Path(__file__).with_name("sabotage")
LONGEST_SECONDS = 300
"""A command takes a tenth of this on an idle machine."""


class Generation:
    """Runs `tokenleap generate` into one folder, repeatedly; by default the data set of `pairs_root`."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.root, self.teacher = folder, folder / "pairs", teacher
        self.configure(num_pairs=96)

    def configure(self, num_pairs: int) -> None:
        """Write the preset."""
        (self.folder / "preset.toml").write_text(
            f'[teacher]\nname = "{self.teacher}"\nguidance_scale = 1.5\n[pairs]\nnum_pairs = {num_pairs}\n'
            "pairs_per_shard = 32\nbatch_size = 16\nseed = 3\nsolver_steps = 16\n"
        )

    def start(self, *arguments: object, sabotage: dict[str, object] | None = None) -> subprocess.Popen[str]:
        """Start the command in its own process group."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "generate", "preset.toml", "--out", "pairs"]
            + [str(argument) for argument in arguments],
            cwd=self.folder,
            env=self.environment(sabotage),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def run(self, *arguments: object, exit_code: int = 0, sabotage: dict[str, object] | None = None) -> str:
        """Run the command to its end; returns its messages."""
        return self.ended(self.start(*arguments, sabotage=sabotage), exit_code)

    def rows(self) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in (self.root / "manifest").glob("[!.]*")}

    def shards(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.root / "shards").glob("[!.]*")}

    def logs(self) -> dict[int, str]:
        """The log of every worker, by process id."""
        return {int(path.stem.rpartition("-")[2]): path.read_text() for path in (self.root / "logs").glob("*.log")}

    def begun(self) -> int:
        """The number of shard starts in all logs."""
        return "".join(self.logs().values()).count(" begins ")

    @staticmethod
    def environment(sabotage: dict[str, object] | None = None) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": f"{SABOTAGE}:{REPOSITORY}",
            "SABOTAGE": json.dumps(sabotage or {}),
            "OMP_NUM_THREADS": "1",
            # As if workers started slowly: with this setting alone Dask would give them up.
            "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "10ms",
        }

    @staticmethod
    def ended(process: subprocess.Popen[str], exit_code: int) -> str:
        """Wait for a command's end; returns its messages."""
        try:
            _, messages = process.communicate(timeout=LONGEST_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == exit_code, messages
        return messages

    @staticmethod
    def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
        """Wait until a condition is true, while the given process runs."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while not is_true():
            has_ended = process is not None and process.poll() is not None
            if has_ended or time.monotonic() > deadline:
                if process is not None and not has_ended:
                    os.killpg(process.pid, signal.SIGKILL)
                pytest.fail(f"the condition did not become true: {process.communicate()[1] if process else ''}")
            time.sleep(0.02)


@pytest.fixture
def generation(teacher_path: Path, tmp_path: Path) -> Generation:
    return Generation(tmp_path, teacher_path)
