"""A run in its own process group: started, killed in a phase, and inspected through its files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.run_folder.run_dir import RunDir
from shards.core.errors import Failed
from shards.dataset.manifest_row import ROW_FOLDER, SHARD_FOLDER
from shards.storage.files import list_names, sha256_file

PHASES = ("pairs", "student", "evaluation", "done")
EXPORT = ("student.safetensors", "tokenizer.safetensors", "config.json")
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class KillableRun:
    """A run folder, the other command line arguments, and the final number of shards."""

    run_dir: RunDir
    arguments: tuple[str, ...]
    num_shards: int

    def finish(self, workers: int) -> float:
        """Run to the end; return the wall time in seconds.

        Raises:
            Failed: the run failed.
        """
        began = time.monotonic()
        with self._started(workers) as process:
            process.wait()
            self._refuse_failure(process)
        return time.monotonic() - began

    def kill(self, phase: str, seconds_in_phase: float, seconds_to_resume: float, workers: int) -> float:
        """Start the run and kill it in a phase; return the seconds between start and kill.

        Args:
            phase: the phase to wait for.
            seconds_in_phase: time from the start of the phase to the kill, unless the run ends before.
            seconds_to_resume: additional time that a run needs to resume a phase that had started.
            workers: worker processes for the pairs.

        Raises:
            Failed: the run failed before it was killed.
        """
        began = time.monotonic()
        extra = seconds_to_resume if self._has_reached(phase) else 0.0
        with self._started(workers) as process:
            while not self._has_reached(phase) and process.poll() is None:
                time.sleep(POLL_SECONDS)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds_in_phase + extra)
                self._refuse_failure(process)
        return time.monotonic() - began

    @property
    def phase(self) -> str:
        """The current phase, or the one at which the run will resume."""
        if len(self.rows()) < self.num_shards:
            return "pairs"
        if not self.run_dir.metrics.is_file():
            return "student"
        return "done" if self.run_dir.report.is_file() else "evaluation"

    @property
    def step(self) -> int:
        """Training steps in the newest checkpoint, 0 without a checkpoint."""
        names = list_names(self.run_dir.student / "checkpoints", ".json")
        return int(Path(names[-1]).stem.removeprefix("step-")) if names else 0

    def rows(self) -> dict[str, tuple[int, str]]:
        """Committed rows of the manifest, see `committed_rows`."""
        return committed_rows(self.run_dir.pairs)

    def results(self) -> dict[str, str]:
        """sha256 by name of the files that must not depend on kills: shards and export."""
        shards = self.run_dir.pairs / SHARD_FOLDER
        paths = [shards / name for name in list_names(shards, ".tar")]
        paths += [self.run_dir.student / name for name in EXPORT]
        return {str(path.relative_to(self.run_dir.root)): sha256_file(path) for path in paths}

    def _started(self, workers: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
        root = str(self.run_dir.root)
        return started(["run", *self.arguments, "--out", root, "--workers", str(workers)], self._log)

    def _refuse_failure(self, process: subprocess.Popen[bytes]) -> None:
        if process.returncode != 0:
            raise Failed(f"the run ended with exit code {process.returncode}; see {self._log}")

    def _has_reached(self, phase: str) -> bool:
        return PHASES.index(self.phase) >= PHASES.index(phase)

    @property
    def _log(self) -> Path:
        return self.run_dir.root.with_suffix(".log")


@contextmanager
def started(arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start `tokenleap`, its output appended to a log; at the end of the block its process group is killed."""
    with log.open("ab") as file:
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def committed_rows(pairs: Path) -> dict[str, tuple[int, str]]:
    """Committed rows of a manifest by name: modification time (ns) and sha256 of each."""
    folder = pairs / ROW_FOLDER
    paths = [folder / name for name in list_names(folder, ".parquet")]
    return {path.name: (path.stat().st_mtime_ns, sha256_file(path)) for path in paths}


def refuse_rewritten(
    before: Mapping[str, tuple[int, str]], now: dict[str, tuple[int, str]]
) -> dict[str, tuple[int, str]]:
    """Check that the earlier rows are unchanged; return the present ones.

    Raises:
        Failed: a row was rewritten or removed.
    """
    changed = [name for name, row in before.items() if now.get(name) != row]
    if changed:
        raise Failed(f"rows that were committed before a kill were rewritten: {', '.join(changed)}")
    return now
