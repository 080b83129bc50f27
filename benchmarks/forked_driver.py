"""Runs `tokenleap generate` in a forked process, which saves the seconds of its imports.

The workers of such a driver are forked as well, while `tokenleap` itself spawns its workers.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import dask
import distributed  # noqa: F401, imported before any fork
import psutil
import pyarrow.parquet  # noqa: F401, as well
import torch
import webdataset  # noqa: F401, as well
from faults import Faults

from generate_pairs.teachers.checkpoints import load_teacher
from pipeline.cli.main import main as tokenleap
from shards.dataset.manifest import DATASET_FILE, Manifest
from shards.dataset.manifest_row import SHARD_FOLDER
from shards.storage.files import TEMPORARY_SUFFIX, list_names, sha256_file

TEACHER = "digits"
SETTINGS = ("num_pairs=80", "pairs_per_shard=16", "batch_size=8", "solver_steps=8", "seed=3")


def warm_up() -> None:
    """Import and load everything, with one thread, before any fork: threads do not exist in forked processes."""
    torch.set_num_threads(1)
    load_teacher(TEACHER)


@dataclass(frozen=True)
class Place:
    """A folder of pairs, the log of its drivers, and Dask's scratch folder."""

    root: Path

    @property
    def log(self) -> Path:
        return self.root.with_suffix(".log")

    @property
    def scratch(self) -> Path:
        return self.root.with_suffix(".scratch")

    def pairs(self) -> dict[str, object]:
        """Hashes and rows that must not depend on kills and faults, by name."""
        names = [
            DATASET_FILE,
            *(f"{SHARD_FOLDER}/{name}" for name in list_names(self.root / SHARD_FOLDER, "")),
        ]
        rows = Manifest.open(self.root).rows
        return {name: sha256_file(self.root / name) for name in names} | {
            row.shard: (row.first_pair, row.num_pairs, row.num_bytes, row.sha256, row.fingerprint) for row in rows
        }

    def temporaries(self) -> list[Path]:
        """Temporary files of killed writers."""
        return sorted(self.root.rglob(f".*{TEMPORARY_SUFFIX}"))

    def delete(self) -> None:
        for folder in (self.root, self.scratch):
            shutil.rmtree(folder, ignore_errors=True)
        self.log.unlink()


@dataclass
class Driver:
    """One try: `tokenleap generate` in a separate process, in its own session."""

    place: Place
    workers: int
    faults: Faults | None = None
    seen: set[psutil.Process] = field(default_factory=set)

    def __post_init__(self) -> None:
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._drive()
        self.process = psutil.Process(self.pid)

    def _drive(self) -> NoReturn:
        """Run the command line in the child process."""
        os.setsid()
        log = os.open(self.place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        dask.config.set(
            {
                "distributed.worker.multiprocessing-method": "fork",
                "temporary-directory": str(self.place.scratch),
            }
        )
        settings = [word for setting in SETTINGS for word in ("--set", f"pairs.{setting}")]
        arguments = ["generate", TEACHER, "--out", str(self.place.root), "--workers", str(self.workers)]
        code = 70
        try:
            if self.faults is not None:
                self.faults.install()
            tokenleap([*arguments, *settings], prog_name="tokenleap")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, until: float) -> int | None:
        """Its exit code (negative: the signal that ended it), None if it is still running at the time `until`."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            self.seen.update(self.children())
            if time.monotonic() >= until:
                return None
            time.sleep(0.005)

    def children(self) -> list[psutil.Process]:
        """Its running workers."""
        with suppress(psutil.NoSuchProcess):
            return self.process.children(recursive=True)
        return []

    def kill_all(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
