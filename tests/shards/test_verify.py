"""Each kind of finding, alone, and nothing changed by looking."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest

import shards.writer
from shards import Refused, commit_shard, verify
from shards.rows import forget, read_row, row_path, shard_path, write_row


def kinds(root: Path) -> list[tuple[str, str]]:
    return [(finding.kind, Path(finding.where).name) for finding in verify(root)]


def recommit(root, spec, pairs, row_extras) -> None:
    """Replaces shard 1 by one that is whole in itself but holds these pairs."""
    forget(root, "pairs-000001")
    commit_shard(root, spec, 1, pairs, row_extras)


@pytest.mark.parametrize("noise", ["stored", "counter"])
def test_nothing_to_find_and_nothing_changed(make_spec, make_dataset, noise) -> None:
    manifest = make_dataset(make_spec(noise=noise), 3)
    manifest.write_joined()
    before = {path: path.stat().st_mtime_ns for path in manifest.root.rglob("*")}
    assert verify(manifest.root) == []
    assert {path: path.stat().st_mtime_ns for path in manifest.root.rglob("*")} == before


def test_it_reports_shard_by_shard(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 3).root
    shard_path(root, "pairs-000001").unlink()
    told = []
    verify(root, lambda *progress: told.append(progress))
    assert told == [(1, 3, ""), (2, 3, "1 found"), (3, 3, "1 found")]


def test_no_data_set(tmp_path) -> None:
    with pytest.raises(Refused, match="no such folder"):
        verify(tmp_path / "nothing")
    assert kinds(tmp_path) == [("dataset", "dataset.json")]


def test_an_edited_dataset_file(make_spec, make_dataset) -> None:
    path = make_dataset(make_spec(), 1).root / "dataset.json"
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 8'))
    assert kinds(path.parent) == [("dataset", "dataset.json")]


def test_a_gap_in_the_sequence(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 3).root
    forget(root, "pairs-000001")
    shard_path(root, "pairs-000001").unlink()
    assert kinds(root) == [("missing", "pairs-000001.parquet")]


def test_a_tar_without_a_row(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 3).root
    forget(root, "pairs-000002")
    assert kinds(root) == [("uncommitted", "pairs-000002.tar")]
    forget(root, "pairs-000000")
    assert kinds(root) == [
        ("missing", "pairs-000000.parquet"),
        ("uncommitted", "pairs-000000.tar"),
        ("uncommitted", "pairs-000002.tar"),
    ]


def test_a_missing_tar(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 2).root
    shard_path(root, "pairs-000001").unlink()
    assert kinds(root) == [("broken", "pairs-000001.tar")]


@pytest.mark.parametrize("data", [b"", b"PAR1", bytes(4000)])
def test_an_unreadable_row(make_spec, make_dataset, data) -> None:
    root = make_dataset(make_spec(), 2).root
    row_path(root, "pairs-000001").write_bytes(data)
    assert kinds(root) == [("row", "pairs-000001.parquet")]


def test_a_row_that_reads_the_same_from_other_bytes(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 2).root
    path = row_path(root, "pairs-000001")
    row, data = read_row(root, "pairs-000001"), path.read_bytes()
    # The name of the footer's copy of the schema: nobody reads rows by it.
    path.write_bytes(data.replace(b"ARROW:schema", b"ARROW:schemb"))
    assert read_row(root, "pairs-000001") == row
    assert kinds(root) == [("row", "pairs-000001.parquet")]


def test_a_row_that_another_version_of_the_library_wrote(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 2).root
    path = row_path(root, "pairs-000001")
    version = f"version {pyarrow.__version__}".encode()
    path.write_bytes(path.read_bytes().replace(version, b"version " + b"9" + version[9:]))
    assert kinds(root) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [({"fingerprint": "f"}, "foreign"), ({"num_pairs": 9}, "row"), ({"first_pair": 0}, "row")],
)
def test_a_row_that_does_not_belong(make_spec, make_dataset, change, kind) -> None:
    manifest = make_dataset(make_spec(), 2)
    forget(manifest.root, "pairs-000001")
    write_row(manifest.root, replace(manifest.rows[1], **change))
    assert kinds(manifest.root) == [(kind, "pairs-000001.parquet")]


def test_a_joined_table_that_says_otherwise(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 2)
    replace(manifest, rows=(manifest.rows[0], replace(manifest.rows[1], host="elsewhere"))).write_joined()
    assert kinds(manifest.root) == [("joined", "manifest.parquet")]
    manifest.write_joined().write_bytes(b"PAR1")
    assert kinds(manifest.root) == [("joined", "manifest.parquet")]


def test_tokens_out_of_range(make_spec, make_dataset, make_pairs, row_extras, monkeypatch) -> None:
    spec = make_spec()
    root = make_dataset(spec, 2).root
    monkeypatch.setattr(shards.writer, "check_pairs", lambda *_: None)
    tokens_BL = make_pairs(spec, 1).tokens_BL.copy()
    tokens_BL[[2, 5], 3] = 64
    recommit(root, spec, replace(make_pairs(spec, 1), tokens_BL=tokens_BL), row_extras)
    (finding,) = verify(root)
    assert finding.kind == "tokens"
    assert "2 pairs, the first of them 10, hold tokens outside 0 .. 63" in finding.message


def test_labels_that_do_not_follow_the_rule(make_spec, make_dataset, make_pairs, row_extras) -> None:
    spec = make_spec()
    root = make_dataset(spec, 2).root
    label_B = np.roll(make_pairs(spec, 1).label_B, 1)
    recommit(root, spec, replace(make_pairs(spec, 1), label_B=label_B), row_extras)
    assert kinds(root) == [("labels", "pairs-000001.tar")]


def test_noise_of_another_seed(make_spec, make_dataset, make_pairs, row_extras) -> None:
    spec = make_spec()
    root = make_dataset(spec, 2).root
    noise_BLC = make_pairs(spec, 1).noise_BLC.copy()
    noise_BLC[7, 5, 2] = np.nextafter(noise_BLC[7, 5, 2], np.float16(9))
    recommit(root, spec, replace(make_pairs(spec, 1), noise_BLC=noise_BLC), row_extras)
    (finding,) = verify(root)
    assert (finding.kind, "the first of them 15" in finding.message) == ("noise", True)
