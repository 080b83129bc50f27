"""The joined table: written while other processes write rows, and read from servers that cannot list files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from shards import Manifest, Refused, View, commit_shard, create_dataset, verify
from shards.dataset import manifest
from shards.dataset.manifest import join
from shards.dataset.manifest_row import read_joined, remove_row, replace_row
from shards.streaming.stream import PairStream


class Files(SimpleHTTPRequestHandler):
    """Serves files by name, without listings."""

    def list_directory(self, path: object) -> None:
        self.send_error(404)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def during_the_write(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Calls a function once, between the first reading of the rows and the writing of the joined table."""
    real = manifest.write_joined

    def arrange(change: Callable[[], object]) -> None:
        pending = [change]

        def write_joined(root, rows):
            if pending:
                pending.pop()()
            return real(root, rows)

        monkeypatch.setattr(manifest, "write_joined", write_joined)

    return arrange


def test_joining_reads_the_rows_and_not_the_table(make_spec, make_dataset) -> None:
    made = make_dataset(make_spec(), 3)
    replace(made, rows=(made.rows[0], replace(made.rows[1], host="elsewhere"))).write_joined()
    assert join(made.root) == made
    assert tuple(read_joined(made.root).values()) == made.rows
    assert verify(made.root) == []


@pytest.mark.parametrize("change", ["removed", "replaced", "added"])
def test_a_change_while_rows_are_joined_is_in_the_table(
    make_spec, make_pairs, make_dataset, row_extras, during_the_write, change: str
) -> None:
    made = make_dataset(make_spec(), 3)
    root, spec = made.root, made.spec
    changes = {
        "removed": lambda: remove_row(root, "pairs-000002"),
        "replaced": lambda: replace_row(root, replace(made.rows[1], host="elsewhere")),
        "added": lambda: commit_shard(root, spec, 3, make_pairs(spec, 3), row_extras),
    }
    during_the_write(changes[change])
    assert join(root) == Manifest.open(root)
    assert tuple(read_joined(root).values()) == join(root).rows
    assert len(read_joined(root)) == {"removed": 2, "replaced": 3, "added": 4}[change]


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_table_of_old_rows_does_not_outlive_a_change(
    make_spec, make_dataset, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Another process that read the rows before the change writes the table during the change."""
    from shards.dataset import manifest_row as rows

    made = make_dataset(make_spec(), 3)
    real = rows.remove
    removed: list[str] = []

    def remove(path: Path) -> bool:
        existed = real(path)
        if not removed:
            made.write_joined()
        removed.append(path.name)
        return existed

    monkeypatch.setattr(rows, "remove", remove)
    if change == "removed":
        remove_row(made.root, "pairs-000001")
        assert Manifest.open(made.root).rows == (made.rows[0], made.rows[2])
    else:
        other = replace(made.rows[1], host="elsewhere")
        replace_row(made.root, other)
        assert Manifest.open(made.root).rows == (made.rows[0], other, made.rows[2])
    assert read_joined(made.root) == {}


def test_many_may_join_at_once(make_spec, make_dataset) -> None:
    made = make_dataset(make_spec(), 4)
    with ThreadPoolExecutor(4) as pool:
        assert all(joined == made for joined in pool.map(join, [made.root] * 12))
    assert verify(made.root) == []


def test_a_url_is_joined(make_spec, make_pairs, row_extras) -> None:
    url, spec = "memory://joined", make_spec()
    create_dataset(url, spec)
    for index in range(2):
        commit_shard(url, spec, index, make_pairs(spec, index), row_extras)
    made = Manifest.open(url)
    assert join(url) == made
    assert verify(url) == []
    remove_row(url, "pairs-000000")
    assert Manifest.open(url).missing(2) == (0,)


def test_over_the_web_the_table_alone_lists_the_shards(make_spec, make_dataset) -> None:
    made = make_dataset(make_spec(), 4)
    replace(made, rows=made.rows[:3]).write_joined()
    with served(made.root) as url:
        remote = Manifest.open(url)
        assert (remote.spec, remote.rows) == (made.spec, made.rows[:3])
        assert verify(url) == []
        views: list[tuple[Any, View]] = [(url, remote.view()), (made.root, made.view(16))]
        streams = [PairStream(root, view, batch_size=4, seed=1) for root, view in views]
        for _ in range(6):
            served_batch, local_batch = (next(stream) for stream in streams)
            assert served_batch.index_B.tolist() == local_batch.index_B.tolist()
            assert served_batch.noise_BLC.equal(local_batch.noise_BLC)
            assert served_batch.tokens_BL.equal(local_batch.tokens_BL)


def test_damage_behind_a_web_server_is_found(make_spec, make_dataset) -> None:
    made = make_dataset(make_spec(), 3)
    made.write_joined()
    tar = made.root / "shards" / "pairs-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    (made.root / "shards" / "pairs-000002.tar").unlink()
    with served(made.root) as url:
        found = [(finding.kind, finding.where) for finding in verify(url)]
        assert found == [("broken", f"{url}/shards/pairs-00000{index}.tar") for index in (1, 2)]


def test_the_web_without_a_table_is_refused_with_a_remedy(make_spec, make_dataset) -> None:
    with served(make_dataset(make_spec(), 2).root) as url:
        with pytest.raises(Refused, match=r"has no manifest\.parquet .*create one with `tokenleap shards join`"):
            Manifest.open(url)
        assert [finding.kind for finding in verify(url)] == ["joined"]


def test_the_web_without_pairs_is_refused(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        for call in (Manifest.open, verify):
            with pytest.raises(Refused, match="is not a pair data set"):
                call(url)


def test_nothing_is_written_over_the_web(make_spec, make_pairs, make_dataset, row_extras) -> None:
    made = make_dataset(make_spec(), 2)
    made.write_joined()
    with served(made.root) as url:
        calls: list[Callable[[], object]] = [
            lambda: create_dataset(url, made.spec),
            lambda: commit_shard(url, made.spec, 2, make_pairs(made.spec, 2), row_extras),
            lambda: join(url),
            lambda: remove_row(url, "pairs-000000"),
        ]
        for call in calls:
            with pytest.raises(Refused, match="pairs can only be read over http"):
                call()
