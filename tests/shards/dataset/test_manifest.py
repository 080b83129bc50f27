"""Creation of a data set, its manifest, and views of its pairs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from shards import Failed, Manifest, Refused, create_dataset, shard_name
from shards.dataset.manifest import dataset_exists, read_spec, refuse_other_spec
from shards.dataset.manifest_row import remove_row, replace_row, row_path, write_row

pytestmark = pytest.mark.quick


def test_shard_name() -> None:
    assert shard_name(42) == "pairs-000042"


def test_creating_twice_changes_nothing(tmp_path, make_spec) -> None:
    create_dataset(tmp_path, make_spec())
    before = (tmp_path / "dataset.json").read_bytes()
    create_dataset(tmp_path, make_spec())
    assert (tmp_path / "dataset.json").read_bytes() == before
    assert read_spec(tmp_path) == make_spec()


def test_creating_with_another_spec_names_every_difference(tmp_path, make_spec) -> None:
    create_dataset(tmp_path, make_spec())
    lineage = {"teacher": {"name": "small", "top_k": 9}, "dtype": "float32", "solver_steps": 32}
    with pytest.raises(Refused) as caught:
        create_dataset(tmp_path, make_spec(lineage=lineage, num_heldout=16))
    message = str(caught.value)
    assert "lineage.teacher.top_k: found 5, requested 9" in message
    assert "lineage.solver_steps: found nothing, requested 32" in message
    assert "num_heldout: found 8, requested 16" in message
    assert message.count(": found ") == 3
    assert read_spec(tmp_path) == make_spec()


def test_a_data_set_keeps_its_original_names(tmp_path, make_spec) -> None:
    create_dataset(tmp_path, make_spec())
    create_dataset(tmp_path, make_spec(lineage={"teacher": {"name": "renamed", "top_k": 5}, "dtype": "float32"}))
    assert read_spec(tmp_path) == make_spec()


def test_checking_for_a_data_set_writes_nothing(tmp_path, make_spec) -> None:
    root = tmp_path / "pairs"
    assert not dataset_exists(root)
    assert not root.exists()
    create_dataset(root, make_spec())
    assert dataset_exists(root)
    refuse_other_spec(root, make_spec())
    with pytest.raises(Refused, match="seed: found 7, requested 8"):
        refuse_other_spec(root, make_spec(seed=8))


def test_tuples_in_a_lineage_equal_the_lists_that_are_read_back(tmp_path, make_spec) -> None:
    spec = make_spec(lineage={"scales": (1, 2, 4)})
    create_dataset(tmp_path, spec)
    create_dataset(tmp_path, spec)
    assert read_spec(tmp_path).fingerprint == spec.fingerprint


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not JSON"), ("[]", "JSON object"), ("{}", "schema_version is None")]
)
def test_a_broken_dataset_file_is_refused(tmp_path, content, message) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(Refused, match=message):
        Manifest.open(tmp_path)


def test_a_folder_without_a_data_set_is_refused(tmp_path) -> None:
    with pytest.raises(Refused, match="not a pair data set"):
        Manifest.open(tmp_path)


def test_rows_are_sorted_and_gaps_are_found(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 4).root
    remove_row(root, "pairs-000002")
    manifest = Manifest.open(root)
    assert [row.first_pair for row in manifest.rows] == [0, 8, 24]
    assert manifest.num_pairs == 24
    assert manifest.missing(6) == (2, 4, 5)


def test_the_joined_table_gives_the_same_manifest(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 3)
    assert manifest.write_joined() == manifest.root / "manifest.parquet"
    assert Manifest.open(manifest.root) == manifest


def test_rows_committed_after_joining_count(make_spec, make_dataset) -> None:
    make_dataset(make_spec(), 2).write_joined()
    assert [row.first_pair for row in make_dataset(make_spec(), 3).rows] == [0, 8, 16]


@pytest.mark.parametrize("removed", [remove_row, lambda root, name: row_path(root, name).unlink()])
def test_a_removed_row_does_not_count_even_if_the_joined_table_contains_it(make_spec, make_dataset, removed) -> None:
    manifest = make_dataset(make_spec(), 3)
    manifest.write_joined()
    removed(manifest.root, "pairs-000001")
    assert Manifest.open(manifest.root).missing(3) == (1,)


def test_the_first_row_wins(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 1)
    assert not write_row(manifest.root, replace(manifest.rows[0], host="elsewhere"))
    assert Manifest.open(manifest.root) == manifest


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"fingerprint": "0" * 64}, Refused, "its shard belongs to other pairs"),
        ({"num_pairs": 7}, Failed, "num_pairs is 7"),
        ({"first_pair": 16}, Failed, "first_pair is 16"),
    ],
)
def test_a_row_that_does_not_belong_is_named(make_spec, make_dataset, change, kind, message) -> None:
    manifest = make_dataset(make_spec(), 2)
    replace_row(manifest.root, replace(manifest.rows[1], **change))
    with pytest.raises(kind, match=rf"pairs-000001\.parquet: {message}"):
        Manifest.open(manifest.root)


def test_an_unreadable_row_fails_by_name(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 2).root
    path = row_path(root, "pairs-000001")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Failed, match=r"pairs-000001\.parquet .*tokenleap shards repair"):
        Manifest.open(root)


def test_a_row_under_another_name_fails(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 2).root
    row_path(root, "pairs-000000").replace(row_path(root, "pairs-000001"))
    with pytest.raises(Failed, match="does not contain exactly the row of pairs-000001"):
        Manifest.open(root)


def test_training_views_begin_after_the_held_out_pairs(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 4)
    view = manifest.view()
    assert (view.first, view.size, view.sizes) == (8, 24, (8, 8, 8))
    part = manifest.view(11)
    assert (part.first, part.size, part.sizes) == (8, 11, (8, 3))
    assert part.rows == manifest.rows[1:3]
    held_out = manifest.heldout()
    assert (held_out.first, held_out.size, held_out.rows) == (0, 8, manifest.rows[:1])


def test_pairs_after_a_missing_shard_are_not_available(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 4).root
    assert Manifest.open(root).num_available == Manifest.open(root).view().size == 24
    row_path(root, "pairs-000002").unlink()
    assert Manifest.open(root).num_available == 8
    assert Manifest.open(root).view(8).sizes == (8,)
    row_path(root, "pairs-000000").unlink()
    assert Manifest.open(root).num_available == 0


def test_held_out_pairs_need_not_fill_their_shard(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(num_heldout=3), 2)
    assert manifest.view().sizes == (5, 8)
    assert manifest.view(2).sizes == (2,)
    assert manifest.heldout().sizes == (3,)


def test_a_view_larger_than_the_data_is_refused(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 3)
    with pytest.raises(Refused, match=r"has 16 training pairs, but 17 are needed.*--num-pairs 17"):
        manifest.view(17)
    with pytest.raises(Refused, match=r"^0 training pairs were requested from .*: give at least 1$"):
        manifest.view(0)
    assert manifest.view(16).size == 16


def test_a_view_over_a_gap_is_refused(make_spec, make_dataset) -> None:
    root = make_dataset(make_spec(), 4).root
    remove_row(root, "pairs-000002")
    manifest = Manifest.open(root)
    assert manifest.view(8).size == 8
    with pytest.raises(Refused, match="has 8 training pairs"):
        manifest.view(9)
    with pytest.raises(Refused, match="pairs-000002 is missing"):
        manifest.view()


def test_an_unfinished_data_set_has_no_views(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 0)
    assert manifest.rows == ()
    with pytest.raises(Refused, match="has 0 training pairs"):
        manifest.view()
    with pytest.raises(Refused, match="held-out"):
        manifest.heldout()


def test_dataset_file_is_indented_json(tmp_path, make_spec) -> None:
    create_dataset(tmp_path, make_spec())
    text = (tmp_path / "dataset.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(make_spec().to_json()))
    assert '\n  "num_heldout": 8,\n' in text
