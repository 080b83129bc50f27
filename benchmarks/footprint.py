"""Measure the memory and time of a command: peak of the summed PSS of its process tree, and wall time.

PSS counts a page that n processes share as 1/n of a page in each, so the sum over the tree is the memory that is
really used; RSS would count shared libraries once for every worker. Linux only.

    python benchmarks/footprint.py -- tokenleap run digits --out runs/digits
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

INTERVAL_SECONDS = 0.2


@dataclass(frozen=True, order=True)
class Sample:
    """The process tree at one moment."""

    pss_bytes: int = 0
    num_processes: int = 0


def pss_bytes(pid: int) -> int | None:
    """A process's PSS, None if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    return kilobytes[0] * 1024 if kilobytes else None


def sample(root: psutil.Process) -> Sample:
    """Measure a process and all its running descendants."""
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return Sample()
    sizes = [size for process in tree if (size := pss_bytes(process.pid)) is not None]
    return Sample(sum(sizes), len(sizes))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(command: tuple[str, ...]) -> None:
    """Run COMMAND; print its peak memory and its time; exit with its exit code."""
    if not Path("/proc/self/smaps_rollup").is_file():
        raise click.ClickException("/proc/PID/smaps_rollup does not exist: this program needs Linux 4.14 or newer")
    began = time.monotonic()
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise click.ClickException(f"cannot run {command[0]}: {error.strerror}") from error
    root, peak = psutil.Process(process.pid), Sample()
    while process.poll() is None:
        peak = max(peak, sample(root))
        time.sleep(INTERVAL_SECONDS)
    seconds = time.monotonic() - began
    click.echo(f"peak PSS {peak.pss_bytes / 1e9:.2f} GB (with {peak.num_processes} processes), wall time {seconds:.1f} s")
    # The convention of shells for a process that was ended by a signal.
    sys.exit(process.returncode if process.returncode >= 0 else 128 - process.returncode)


if __name__ == "__main__":
    main()
