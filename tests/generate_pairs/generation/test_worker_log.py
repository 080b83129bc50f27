"""A worker's log records its last shard, even after a crash."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from generate_pairs.generation.worker_log import last_lines, log_shard
from shards.core.errors import Failed, Refused

pytestmark = pytest.mark.quick


def test_a_log_records_what_began_ended_and_failed(tmp_path: Path) -> None:
    with log_shard(tmp_path / "logs", "pairs-000001"):
        pass
    with pytest.raises(ValueError, match="no"), log_shard(tmp_path / "logs", "pairs-000002"):
        raise ValueError("no")
    (log,) = (tmp_path / "logs").iterdir()
    assert log.stem.endswith(f"-{os.getpid()}")
    lines = [line.split(" ", 2)[-1] for line in log.read_text().splitlines()]
    assert lines[:3] == ["begins pairs-000001", "ends pairs-000001 after 0.0 s", "begins pairs-000002"]
    assert lines[3] == "fails pairs-000002"
    assert log.read_text().endswith("ValueError: no\n")


def test_a_crash_leaves_its_stack(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, pathlib\n"
        "from generate_pairs.generation.worker_log import log_shard\n"
        "with log_shard(pathlib.Path(sys.argv[1]), 'pairs-000007'):\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ran.returncode < 0
    path, lines = last_lines(tmp_path, "pairs-000007")
    assert path.parent == tmp_path
    assert any("most recent call first" in line for line in lines)
    assert last_lines(tmp_path, "pairs-000001") is None


def test_the_log_of_the_last_worker_to_die_is_quoted(tmp_path: Path) -> None:
    for time, name in enumerate(["b", "a", "c"]):
        (tmp_path / f"{name}.log").write_text(f"now begins pairs-000003\n{name} was here\n")
        os.utime(tmp_path / f"{name}.log", (time, time))
    (tmp_path / "c.log").write_text("now begins pairs-000003\nnow ends pairs-000003 after 1.0 s\n")
    path, lines = last_lines(tmp_path, "pairs-000003")
    assert path.name == "a.log"
    assert lines == ["now begins pairs-000003", "a was here"]


def test_a_full_disk_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with (
        pytest.raises(Failed, match="No space left on device; run the same command again"),
        log_shard(tmp_path / "logs", "pairs-000001"),
    ):
        pass


def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(Refused, match=r"cannot write its log into .*; set cluster\.log_folder"),
        log_shard(tmp_path / "file" / "logs", "pairs-000001"),
    ):
        pass
