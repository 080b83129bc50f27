"""Image stores: saved images are found again, whatever the batches were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.sampling.image_store import ImageFolder, ImageStore, NpzFile
from shards.core.errors import Failed, Refused

pytestmark = pytest.mark.quick

LABELS = np.arange(20, dtype=np.int64) % 7


def request_of(count: int, **more: Any) -> dict[str, Any]:
    return {"method": "student-1", "seed": 3, "num_images": count, **more}


def images(first: int, count: int, channels: int = 3) -> torch.Tensor:
    """Images in one colour each, which is their index."""
    numbers = torch.arange(first, first + count, dtype=torch.float32) / 255
    return numbers[:, None, None, None].expand(count, channels, 4, 5)


def fill(store: ImageStore, *batches: tuple[int, int]) -> None:
    store.begin()
    for first, count in batches:
        store.save(first, images(first, count))


@pytest.mark.parametrize(
    "batches",
    [
        [(0, 20)],
        [(0, 7), (7, 7), (14, 6)],
        [(14, 6), (0, 7), (5, 5), (7, 7)],
        [(0, 10), (0, 7), (8, 4), (12, 4), (8, 12)],
    ],
)
def test_an_npz_is_the_same_for_any_batches(tmp_path: Path, batches: list[tuple[int, int]]) -> None:
    store = NpzFile(tmp_path / "x.npz", request_of(20))
    fill(store, *batches)
    assert store.is_complete
    # Another process joins the parts.
    NpzFile(tmp_path / "x.npz", request_of(20)).finish(LABELS)
    whole = NpzFile(tmp_path / "whole.npz", request_of(20))
    fill(whole, *[(index, 1) for index in range(20)])
    whole.finish(LABELS)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.npz", "x.npz"]
    with np.load(tmp_path / "x.npz", allow_pickle=False) as content:
        assert (content["arr_0"] == np.arange(20)[:, None, None, None]).all()
        assert content["arr_0"].shape == (20, 4, 5, 3)
        assert np.array_equal(content["arr_1"], LABELS)


def test_saved_images_are_found_again(tmp_path: Path) -> None:
    for kind, path in ((ImageFolder, tmp_path / "images"), (NpzFile, tmp_path / "x.npz")):
        fill(kind(path, request_of(20)), (0, 5), (10, 3))
        again = kind(path, request_of(20))
        assert again.num_saved == 8
        assert np.flatnonzero(again.saved_N).tolist() == [0, 1, 2, 3, 4, 10, 11, 12]
        assert again.describe_progress() == "8 of 20 images are made and kept"


def test_a_saved_image_is_not_written_again(tmp_path: Path) -> None:
    store = ImageFolder(tmp_path, request_of(20))
    fill(store, (0, 5))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    ImageFolder(tmp_path, request_of(20)).save(0, images(0, 10))
    assert len(list(tmp_path.glob("*.png"))) == 10
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_large_file_that_grows_keeps_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file is read in chunks."""
    monkeypatch.setattr("distill.sampling.image_store.CHUNK_BYTES", 3 * 4 * 5 * 3 + 1)
    path = tmp_path / "x.npz"
    store = NpzFile(path, request_of(10))
    fill(store, (0, 10))
    store.finish(LABELS[:10])
    more = NpzFile(path, request_of(20))
    assert more.num_saved == 10
    fill(more, (8, 4), (12, 8))
    more.finish(LABELS)
    with np.load(path) as content:
        assert (content["arr_0"] == np.arange(20)[:, None, None, None]).all()


def test_parts_of_another_request_are_not_joined(tmp_path: Path) -> None:
    fill(NpzFile(tmp_path / "x.npz", request_of(20)), (0, 5))
    with pytest.raises(Refused, match=r"\.x\.npz\.parts holds other images: seed: found 3, requested 4"):
        NpzFile(tmp_path / "x.npz", request_of(20, seed=4))


def test_a_damaged_part_is_refused_by_name(tmp_path: Path) -> None:
    fill(NpzFile(tmp_path / "x.npz", request_of(10)), (0, 5), (5, 5))
    part = tmp_path / ".x.npz.parts" / "000000005-5.npy"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(Failed, match=r"000000005-5\.npy is damaged \(.*remove it and run the same command"):
        NpzFile(tmp_path / "x.npz", request_of(10)).finish(LABELS[:10])
    assert not (tmp_path / "x.npz").exists()
    part.unlink()
    assert NpzFile(tmp_path / "x.npz", request_of(10)).num_saved == 5


@pytest.mark.parametrize("content", [b"", b"[]", b"not json", b'{"seed": 1}'])
def test_a_folder_whose_request_is_unreadable_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sample.json").write_bytes(content)
    with pytest.raises(Refused, match=r"sample\.json does not describe its images"):
        ImageFolder(tmp_path, request_of(10))


def test_parts_without_a_request_are_not_used(tmp_path: Path) -> None:
    """The request is deleted last, and parts without it are ignored."""
    fill(NpzFile(tmp_path / "x.npz", request_of(10)), (0, 5))
    (tmp_path / ".x.npz.parts" / "sample.json").unlink()
    other = NpzFile(tmp_path / "x.npz", request_of(10, seed=4))
    assert other.num_saved == 0
    other.begin()
    assert [path.name for path in (tmp_path / ".x.npz.parts").iterdir()] == ["sample.json"]
