"""Each kind of finding by itself; verification changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import shards.dataset.reader
import shards.dataset.writer
from shards import Failed, Manifest, Refused, commit_shard, gaussian_noise, verify
from shards.dataset.manifest_row import read_row, remove_row, replace_row, row_path, shard_path, write_joined, write_row
from shards.dataset.verify import Sample
from shards.streaming.stream import PairStream

pytestmark = pytest.mark.quick


def kinds(root: Path) -> list[tuple[str, str]]:
    return [(finding.kind, Path(finding.where).name) for finding in verify(root)]


def recommit(root, spec, pairs, row_extras) -> None:
    """Replaces shard 1 by one with these pairs and a matching row."""
    remove_row(root, "pairs-000001")
    commit_shard(root, spec, 1, pairs, row_extras)


@pytest.mark.parametrize("noise", ["stored", "counter"])
def test_a_sound_data_set_has_no_findings_and_does_not_change(make_spec, make_dataset, noise) -> None:
    manifest = make_dataset(make_spec(noise=noise), 3)
    manifest.write_joined()
    before = {path: path.stat().st_mtime_ns for path in manifest.root.rglob("*")}
    assert verify(manifest.root) == []
    assert {path: path.stat().st_mtime_ns for path in manifest.root.rglob("*")} == before


def test_it_reports_shard_by_shard(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 3).root
    shard_path(root, "pairs-000001").unlink()
    reported = []
    verify(root, lambda *progress: reported.append(progress))
    assert reported == [(1, 3, ""), (2, 3, "1 found"), (3, 3, "1 found")]


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
    remove_row(root, "pairs-000001")
    shard_path(root, "pairs-000001").unlink()
    assert kinds(root) == [("missing", "pairs-000001.parquet")]


def test_a_tar_without_a_row(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 3).root
    remove_row(root, "pairs-000002")
    assert kinds(root) == [("uncommitted", "pairs-000002.tar")]
    remove_row(root, "pairs-000000")
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
    # The name of the footer's copy of the schema, which is not used to read rows.
    path.write_bytes(data.replace(b"ARROW:schema", b"ARROW:schemb"))
    assert read_row(root, "pairs-000001") == row
    assert kinds(root) == [("row", "pairs-000001.parquet")]


def test_a_row_that_another_version_of_the_library_wrote(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 2).root
    path = row_path(root, "pairs-000001")
    version = f"version {pyarrow.__version__}".encode()
    path.write_bytes(path.read_bytes().replace(version, b"version " + b"9" + version[9:]))
    assert kinds(root) == []


@pytest.mark.parametrize("joined", [False, True])
def test_rows_without_xxh3_128_are_sound(make_spec, make_dataset, monkeypatch, joined) -> None:
    """Rows as earlier versions wrote them; their shards are checked with sha256."""
    root = make_dataset(make_spec(), 3).root
    for row in Manifest.open(root).rows:
        replace_row(root, replace(row, xxh3_128=None))
    if joined:
        Manifest.open(root).write_joined()
    columns = pyarrow.parquet.read_schema(row_path(root, "pairs-000001")).names
    assert (len(columns), "xxh3_128" in columns) == (11, False)
    assert kinds(root) == []
    manifest = Manifest.open(root)
    assert next(PairStream(root, manifest.view(), 16, seed=0)).label_B.tolist()
    path = shard_path(root, "pairs-000001")
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(Failed, match="its sha256 is"):
        next(PairStream(root, manifest.view(), 16, seed=0))
    assert kinds(root) == [("broken", "pairs-000001.tar")]


@pytest.mark.parametrize("column", ["sha256", "xxh3_128"])
def test_both_hashes_are_checked(make_spec, make_dataset, column) -> None:
    root = make_dataset(make_spec(), 2).root
    rows = Manifest.open(root).rows
    replace_row(root, replace(rows[1], **{column: "0" * len(getattr(rows[1], column))}))
    (finding,) = verify(root)
    assert finding.kind == "broken"
    assert f"its {column} is" in finding.message


@pytest.mark.parametrize(
    ("change", "kind"), [({"fingerprint": "f"}, "foreign"), ({"num_pairs": 9}, "row"), ({"first_pair": 0}, "row")]
)
def test_a_row_that_does_not_belong(make_spec, make_dataset, change, kind) -> None:
    manifest = make_dataset(make_spec(), 2)
    remove_row(manifest.root, "pairs-000001")
    write_row(manifest.root, replace(manifest.rows[1], **change))
    assert kinds(manifest.root) == [(kind, "pairs-000001.parquet")]


def test_a_joined_table_that_differs_from_the_rows(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 2)
    replace(manifest, rows=(manifest.rows[0], replace(manifest.rows[1], host="elsewhere"))).write_joined()
    assert kinds(manifest.root) == [("joined", "manifest.parquet")]
    manifest.write_joined().write_bytes(b"PAR1")
    assert kinds(manifest.root) == [("joined", "manifest.parquet")]


def test_tokens_out_of_range(make_spec, make_dataset, make_pairs, row_extras, monkeypatch) -> None:
    spec = make_spec()
    root = make_dataset(spec, 2).root
    monkeypatch.setattr(shards.dataset.writer, "check_pairs", lambda *_: None)
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


@pytest.mark.parametrize("victim", [0, 2])
def test_a_shard_in_the_place_of_another(make_spec, make_dataset, victim) -> None:
    root = make_dataset(make_spec(), 3).root
    path = shard_path(root, f"pairs-00000{victim}")
    path.write_bytes(shard_path(root, "pairs-000001").read_bytes())
    assert kinds(root) == [("broken", path.name), ("duplicate", path.name)]


def test_a_row_and_a_shard_in_the_place_of_others(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 3).root
    row = read_row(root, "pairs-000000")
    replace_row(root, replace(row, shard="pairs-000001", first_pair=8))
    shard_path(root, "pairs-000001").write_bytes(shard_path(root, "pairs-000000").read_bytes())
    found = [("broken", "pairs-000001.tar"), ("duplicate", "pairs-000001.parquet")]
    assert kinds(root) == [*found, ("duplicate", "pairs-000001.tar")]


def test_two_rows_that_claim_one_shard(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 3)
    row_path(manifest.root, "pairs-000002").write_bytes(row_path(manifest.root, "pairs-000001").read_bytes())
    assert kinds(manifest.root) == [("row", "pairs-000002.parquet")]
    write_row(manifest.root, replace(manifest.rows[2], shard="pairs-000003"))
    assert kinds(manifest.root) == [("row", "pairs-000002.parquet"), ("row", "pairs-000003.parquet")]


def test_a_joined_table_with_two_rows_of_one_shard(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 2)
    write_joined(manifest.root, [*manifest.rows, manifest.rows[1]])
    (finding,) = verify(manifest.root)
    assert finding.kind == "joined"
    assert "contains two rows of one shard" in finding.message


def test_the_noise_of_another_pair(make_spec, make_dataset, make_pairs, row_extras) -> None:
    spec = make_spec()
    root = make_dataset(spec, 3).root
    noise_BLC = make_pairs(spec, 1).noise_BLC.copy()
    noise_BLC[[4, 5]] = make_pairs(spec, 2).noise_BLC[[0, 7]]
    recommit(root, spec, replace(make_pairs(spec, 1), noise_BLC=noise_BLC), row_extras)
    own, common = verify(root)
    assert (own.kind, common.kind) == ("noise", "duplicate")
    assert "2 pairs hold the noise of another, the first of them 12 that of 16" in common.message


def test_equal_noise_that_both_counters_give_is_chance(make_spec, make_dataset) -> None:
    """Among 320 pairs of one number each, some have equal numbers."""
    manifest = make_dataset(make_spec(tokens_per_step=(1,), codebook_dim=1), 40)
    assert len(np.unique(gaussian_noise(7, 0, 320, (1, 1)))) < 320
    assert verify(manifest.root) == []


def test_the_findings_are_the_same_in_any_number_of_processes(make_spec, make_dataset, make_pairs, row_extras) -> None:
    spec = make_spec()
    root = make_dataset(spec, 9).root
    noise_BLC = make_pairs(spec, 2).noise_BLC
    recommit(root, spec, replace(make_pairs(spec, 1), noise_BLC=noise_BLC), row_extras)
    shard_path(root, "pairs-000003").unlink()
    row_path(root, "pairs-000005").unlink()
    shard_path(root, "pairs-000008").write_bytes(b"")
    reported: list[tuple[int, int, str]] = []
    alone = verify(root)
    together = verify(root, lambda *progress: reported.append(progress), workers=2)
    assert [finding.kind for finding in alone] == ["noise", "broken", "missing", "uncommitted", "broken", "duplicate"]
    assert together == alone
    assert [done for done, _, _ in reported] == list(range(1, 10))


def test_a_sample_reads_a_few_shards_and_every_row(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 6)
    for row in manifest.rows:
        shard_path(manifest.root, row.shard).write_bytes(b"")
    row_path(manifest.root, "pairs-000004").write_bytes(b"")
    names = [row.shard for row in manifest.rows]
    drawn = Sample(2, seed=1).of(names)
    assert drawn == Sample(2, seed=1).of(names[::-1])
    assert len(drawn) == 2
    assert len({Sample(2, seed).of(names) for seed in range(20)}) > 5
    findings = verify(manifest.root, sample=Sample(2, seed=1))
    broken = {Path(finding.where).stem for finding in findings if finding.kind == "broken"}
    assert broken == drawn - {"pairs-000004"}
    assert [Path(finding.where).stem for finding in findings if finding.kind == "row"] == ["pairs-000004"]


def test_noise_from_another_arithmetic_is_found(make_spec, make_dataset, monkeypatch) -> None:
    """On another platform, the logarithm rounds one number of one pair to the next float16."""
    root = make_dataset(make_spec(noise="counter"), 3).root

    def elsewhere(seed, first, count, shape):
        noise_BLC = gaussian_noise(seed, first, count, shape)
        if first == 8:
            noise_BLC.view(np.uint16)[3, 2, 1] ^= 1
        return noise_BLC

    monkeypatch.setattr(shards.dataset.reader, "gaussian_noise", elsewhere)
    (finding,) = verify(root)
    assert (finding.kind, Path(finding.where).name) == ("broken", "pairs-000001.tar")
    assert "the noise of pair 11 regenerated from its counter does not match the checksum" in finding.message
