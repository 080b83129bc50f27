"""Local files are written atomically, and no temporary files remain. `test_objects.py` tests what URLs do alike."""

from __future__ import annotations

import errno
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards import Failed, Refused
from shards.storage.files import (
    commit_bytes,
    commit_file,
    has_sha256,
    list_names,
    pop_bytes,
    remove,
    remove_stale_temporaries,
    sha256_bytes,
)

pytestmark = pytest.mark.quick


def test_pop_returns_the_content_to_one_caller(tmp_path) -> None:
    path = tmp_path / "file"
    commit_bytes(path, b"one")
    assert has_sha256(path, sha256_bytes(b"one"))
    assert not has_sha256(path, sha256_bytes(b"two"))
    with ThreadPoolExecutor(8) as pool:
        popped = list(pool.map(lambda _: pop_bytes(path), range(40)))
    assert sorted(popped, key=lambda data: data is None)[:2] == [b"one", None]
    assert not has_sha256(path, sha256_bytes(b"one"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [(errno.ENOSPC, Failed, "no space left"), (errno.EACCES, Refused, "Permission denied"), (errno.EIO, Failed, "error")],
)
def test_a_failed_commit_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, step, code, kind, message) -> None:
    path = tmp_path / "file"
    commit_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(kind, match=message) as caught:
        commit_bytes(path, b"new")
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_interrupting_a_commit_leaves_no_temporary(tmp_path, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        commit_bytes(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_a_file_from_a_callback_has_the_permissions_of_a_new_file(tmp_path: Path, umask: int, expected: int) -> None:
    def write(temporary: Path) -> None:
        temporary.unlink()
        temporary.touch(mode=0o600)
        temporary.write_bytes(b"content")

    before = os.umask(umask)
    try:
        commit_file(tmp_path / "file", write)
        commit_bytes(tmp_path / "other", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "other")] == [expected] * 2


def test_a_folder_that_is_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Refused, match="cannot write"):
        commit_bytes(tmp_path / "file" / "inside", b"")


def test_lists_committed_files_only(tmp_path) -> None:
    for name in ("b.tar", "a.tar", ".c.tar", ".a.tar.1.ab.tmp", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    assert list_names(tmp_path, ".tar") == ["a.tar", "b.tar"]
    assert remove(tmp_path / "a.tar")
    assert list_names(tmp_path, ".tar") == ["b.tar"]


def test_only_old_temporaries_are_stale(tmp_path) -> None:
    old, young, other = (Path(tmp_path, name) for name in (".a.1.aa.tmp", ".a.2.bb.tmp", ".hidden"))
    for path in (old, young, other):
        path.write_bytes(b"")
        os.utime(path, (time.time() - 1000, time.time() - 1000 * (path != young)))
    assert remove_stale_temporaries(tmp_path, older_than_seconds=500) == 1
    assert sorted(os.listdir(tmp_path)) == [".a.2.bb.tmp", ".hidden"]
