"""Which files were held against their sha256 already: noted once for all processes of a job on this host."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shards.core.errors import Failed, Refused
from shards.storage.locks import locked

KEPT_SECONDS = 7 * 24 * 3600
"""Notes of a job that added none for so long are taken away; a job that lives then hashes again."""


class HashCache:
    """Remembers checks that passed, for this process or, in a folder, for all that share it."""

    def __init__(self, folder: Path | None = None) -> None:
        """A ledger.

        Args:
            folder: `job_folder()`, where several processes read the same files; None where one does.
        """
        self._folder = folder
        self._passed: set[str] = set()

    def once(self, path: str, status: os.stat_result, sha256: str, check: Callable[[], None]) -> bool:
        """Calls `check` unless one passed for this very state of the file; others that ask meanwhile wait for it.

        Args:
            path: the file's absolute name.
            status: of the open file whose content `check` looks at.
            sha256: what the content should have.
            check: raises where it has another one; then nothing is noted.

        Returns:
            Whether it was called.

        Raises:
            Failed: the note cannot be written; besides, whatever `check` raises.
        """
        state = (path, status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev, sha256)
        key = hashlib.sha256(repr(state).encode()).hexdigest()
        if key in self._passed:
            return False
        if self._folder is None:
            check()
            called = True
        else:
            called = _check_and_note(self._folder / key, check)
        self._passed.add(key)
        return called


def _check_and_note(note: Path, check: Callable[[], None]) -> bool:
    """The note is its own lock: empty while the check is still to be done."""
    with locked(note) as file:
        if os.fstat(file.fileno()).st_size:
            return False
        check()
        try:
            os.write(file.fileno(), b"\n")
        except OSError as error:
            raise Failed(f"cannot write {note}: {error.strerror}; free some space there") from error
        return True


def job_folder() -> Path:
    """The folder of this job's ledger on this host, made where there is none; the same in all ranks of a job.

    Raises:
        Refused: another user made a folder of this name, or there is no place for temporary files.
    """
    base = Path(tempfile.gettempdir()) / f"tokenleap-{os.getuid()}"
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        status = base.lstat()
        # What another user could write there would vouch for files that nobody checked.
        if status.st_uid != os.getuid() or status.st_mode & 0o022 or not base.is_dir() or base.is_symlink():
            raise Refused(f"{base} is not a folder that only you can write to; set TMPDIR to another place")
        _forget_old_jobs(base)
        folder = base / _job()
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot write {base}: {error.strerror}; set TMPDIR to another place") from error
    return folder


def _job() -> str:
    """What the processes of one job have in common, and no other job on this host has."""
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"slurm-{job}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        # torchrun calls every run "none" that was given no name: its process tells them apart.
        return f"torchrun-{_process(os.getppid())}"
    # What a shell starts as one command is one process group.
    return f"group-{_process(os.getpgid(0))}"


def _process(pid: int) -> str:
    """A process that is, or was, as no later one of the same number is called."""
    try:
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        start = "0"
    return f"{pid}-{start}"


def _forget_old_jobs(base: Path) -> None:
    for folder in base.iterdir():
        if folder.stat().st_mtime < time.time() - KEPT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
