"""Objects are written atomically on S3, in memory, and with failing uploads; local files do the same."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from shards import Failed, Manifest, Refused, commit_shard, create_dataset, verify
from shards.storage.files import (
    commit_bytes,
    has_sha256,
    is_file,
    is_folder,
    list_names,
    pop_bytes,
    read_bytes,
    read_each,
    remove,
    remove_stale_temporaries,
    sha256_bytes,
    sha256_file,
)
from shards.storage.paths import Location, location

FAULTS = ["breaks before", "breaks half-way", "truncates silently", "breaks after"]


@pytest.fixture
def memory() -> Iterator[Location]:
    yield location("memory://pairs")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["memory", "bucket"])
def place(request: pytest.FixtureRequest) -> Location:
    return location(request.getfixturevalue(request.param))


@pytest.fixture(params=["tmp_path", "memory", "bucket"])
def anywhere(request: pytest.FixtureRequest) -> Location:
    return location(request.getfixturevalue(request.param))


@pytest.fixture
def faulty() -> Any:
    """The class FaultyFileSystem in faulty.py, registered."""
    path = Path(__file__).with_name("faulty.py")
    spec = importlib.util.spec_from_file_location("faulty", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fsspec.register_implementation("faulty", module.FaultyFileSystem, clobber=True)
    return module.FaultyFileSystem


def everything(place: Location) -> list[str]:
    """Names of all files below a location, including temporary ones."""
    if isinstance(place, Path):
        return sorted(path.name for path in place.rglob("*") if path.is_file())
    return sorted(name.rpartition("/")[2] for name in fsspec.filesystem(place.protocol).find(place.path))


def test_commit_replaces_and_leaves_no_temporary(anywhere: Location) -> None:
    path = anywhere / "deep" / "file"
    assert commit_bytes(path, b"one")
    assert commit_bytes(path, b"two")
    assert read_bytes(path) == b"two"
    assert sha256_file(path) == hashlib.sha256(b"two").hexdigest()
    assert everything(anywhere) == ["file"]


def test_exclusive_commit_keeps_an_existing_file(anywhere: Location) -> None:
    path = anywhere / "file"
    assert commit_bytes(path, b"one", exclusive=True)
    assert not commit_bytes(path, b"two", exclusive=True)
    assert read_bytes(path) == b"one"
    assert everything(anywhere) == ["file"]


def test_changes_by_another_process_are_visible_at_once(place: Location) -> None:
    other = fsspec.filesystem(place.protocol, use_listings_cache=False, skip_instance_cache=True)
    commit_bytes(place / "a.tar", b"one")
    assert list_names(place, ".tar") == ["a.tar"]
    other.pipe_file((place / "b.tar").path, b"two")
    assert list_names(place, ".tar") == ["a.tar", "b.tar"]
    other.rm_file((place / "a.tar").path)
    assert list_names(place, ".tar") == ["b.tar"]
    assert not is_file(place / "a.tar")


@pytest.mark.parametrize("atomic", ["tmp_path", "bucket"])
def test_of_many_exclusive_writers_one_wins(request: pytest.FixtureRequest, atomic: str) -> None:
    place = location(request.getfixturevalue(atomic))
    path = place / "file"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: commit_bytes(path, b"%d" % number, exclusive=True), range(40)))
    assert sum(won) == 1
    assert read_bytes(path) == b"%d" % won.index(True)
    assert everything(place) == ["file"]


def test_a_name_that_is_taken_meanwhile_on_s3_stays(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.storage import objects as object_storage

    path = location(bucket) / "file"
    commit_bytes(path, b"theirs")
    # As if the object did not exist yet at the time of the check.
    monkeypatch.setattr(object_storage, "_is_file", lambda path: False)
    assert not commit_bytes(path, b"ours", exclusive=True)
    assert read_bytes(path) == b"theirs"
    system = fsspec.filesystem("s3", use_listings_cache=False)
    assert system.list_multipart_uploads(bucket.removeprefix("s3://")) == []


def test_existence_listing_and_removal(anywhere: Location) -> None:
    place = anywhere
    assert not is_folder(place / "a")
    assert list_names(place / "a", ".tar") == []
    for name in ("b.tar", "a.tar", "d.txt", "below/c.tar"):
        commit_bytes(place / "a" / name, name.encode())
    assert is_folder(place / "a")
    assert not is_folder(place / "a" / "a.tar")
    assert not is_file(place / "a")
    assert list_names(place / "a", ".tar") == ["a.tar", "b.tar"]
    paths = [place / "a" / name for name in ("b.tar", "nothing", "a.tar")]
    assert list(read_each(paths)) == [b"b.tar", None, b"a.tar"]
    assert has_sha256(paths[0], sha256_bytes(b"b.tar"))
    assert not has_sha256(paths[0], sha256_bytes(b"other"))
    assert not has_sha256(paths[1], sha256_bytes(b"b.tar"))
    assert pop_bytes(paths[0]) == b"b.tar"
    assert pop_bytes(paths[0]) is None
    assert remove(paths[2])
    assert not remove(paths[2])
    assert list_names(place / "a", ".tar") == []


def test_a_missing_file_is_named(anywhere: Location) -> None:
    for read in (read_bytes, sha256_file):
        with pytest.raises(Failed, match=r"nothing: it is missing"):
            read(anywhere / "nothing")


def test_only_old_temporaries_are_stale(place: Location) -> None:
    system = fsspec.filesystem(place.protocol)
    for name in (".a.1.aa.tmp", ".hidden", "a.tar"):
        system.pipe_file((place / name).path, b"")
    assert remove_stale_temporaries(place, older_than_seconds=500) == 0
    assert remove_stale_temporaries(place, older_than_seconds=-500) == 1
    assert everything(place) == [".hidden", "a.tar"]


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_upload_publishes_nothing(faulty: Any, fault: str, exclusive: bool) -> None:
    place = location("faulty://pairs")
    path = place / f"{fault} {exclusive}"
    faulty.faults[:] = [fault]
    with pytest.raises(Failed, match=r"the line broke|differs from the data") as caught:
        commit_bytes(path, b"a whole content", exclusive=exclusive)
    assert str(path) in str(caught.value)
    assert faulty.store == {}
    assert commit_bytes(path, b"a whole content", exclusive=exclusive)
    assert read_bytes(path) == b"a whole content"
    assert len(faulty.store) == 1


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_broken_upload_keeps_the_existing_object(faulty: Any, exclusive: bool) -> None:
    path = location("faulty://pairs/file")
    commit_bytes(path, b"old")
    faulty.faults[:] = ["truncates silently"]
    if exclusive:
        assert not commit_bytes(path, b"a whole content", exclusive=True)
    else:
        with pytest.raises(Failed, match="differs from the data"):
            commit_bytes(path, b"a whole content")
    assert read_bytes(path) == b"old"
    assert len(faulty.store) == 1


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_truncated_upload_to_s3_publishes_nothing(
    bucket: str, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    from s3fs import S3FileSystem

    system = fsspec.filesystem("s3", use_listings_cache=False)
    real = system.pipe_file
    monkeypatch.setattr(system, "pipe_file", lambda name, data: real(name, data[:-1]))
    monkeypatch.setattr(S3FileSystem, "_cache", {system._fs_token: system})
    with pytest.raises(Failed, match="differs from the data"):
        commit_bytes(location(bucket) / "file", b"a whole content", exclusive=exclusive)
    assert everything(location(bucket)) == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("upload", range(5))
def test_a_data_set_is_completed_by_the_same_calls(
    faulty: Any, make_spec, make_pairs, make_dataset, row_extras, upload: int, fault: str
) -> None:
    """The n-th upload breaks: dataset.json, a tar, its row, the second tar, or its row."""
    spec, root = make_spec(), location("faulty://pairs")

    def make() -> None:
        create_dataset(root, spec)
        for index in range(2):
            commit_shard(root, spec, index, make_pairs(spec, index), row_extras)

    faulty.faults[:] = [""] * upload + [fault]
    with pytest.raises(Failed):
        make()
    if is_folder(root):
        assert {finding.kind for finding in verify(root)} <= {"uncommitted"}
    make()
    assert verify(root) == []
    local = make_dataset(spec, 2)
    assert Manifest.open(root).rows == local.rows
    for row in local.rows:
        assert (
            read_bytes(root / "shards" / f"{row.shard}.tar") == (local.root / "shards" / f"{row.shard}.tar").read_bytes()
        )
    assert len(faulty.store) == 5


CALLS: dict[str, Callable[[Location], object]] = {
    "is_file": is_file,
    "is_folder": is_folder,
    "read": read_bytes,
    "remove": remove,
    "pop_bytes": pop_bytes,
    "list": lambda path: list_names(path, ""),
    "commit": lambda path: commit_bytes(path, b""),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_bucket_is_refused(s3_server: str, call: str) -> None:
    with pytest.raises(Refused, match="s3://no-such-bucket/file: there is no such bucket"):
        CALLS[call](location("s3://no-such-bucket/file"))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (PermissionError("Forbidden"), Refused, r"access is refused \(Forbidden\)"),
        (type("NoCredentialsError", (Exception,), {})("none found"), Refused, r"no credentials .*none found"),
        (type("EndpointConnectionError", (Exception,), {})("at x"), Failed, "its host cannot be reached"),
        (OSError("odd"), Failed, "OSError: odd"),
        (ValueError(), Failed, "ValueError: ValueError"),
    ],
)
def test_errors_of_stores_become_one_message(
    memory: Location, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", fail)
    with pytest.raises(kind, match=f"cannot write memory://pairs/file: .*{message}"):
        commit_bytes(memory / "file", b"")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fail)
    with pytest.raises(kind, match=f"cannot read memory://pairs/file: .*{message}"):
        read_bytes(memory / "file")
