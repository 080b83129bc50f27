"""References: reading each kind of file, and the refusal of wrong files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.evaluation.reference_images import (
    ReferenceBatch,
    ReferenceFolder,
    halves,
    held_out_indices,
    read_statistic,
    statistic_file,
)
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

DIM = 5


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def moments() -> dict[str, np.ndarray]:
    root = np.random.default_rng(1).normal(size=(DIM, DIM))
    return {"mu": np.arange(DIM) / 2.0, "sigma": root @ root.T}


def test_a_batch_gives_its_images_and_moments(tmp_path: Path, pixels: np.ndarray, moments: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "batch.npz", arr_0=pixels, **moments, mu_s=np.zeros(3))
    batch = ReferenceBatch.inspect(tmp_path / "batch.npz", DIM)
    assert (batch.shape, batch.size, batch.has_moments) == ((120, 8, 8, 3), (8, 8), True)
    images = torch.cat(list(batch.images(50)))
    assert images.shape == (120, 3, 8, 8)
    assert torch.equal((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1), torch.from_numpy(pixels))
    np.testing.assert_array_equal(batch.moments().covariance_FF, moments["sigma"])
    np.savez_compressed(tmp_path / "bare.npz", arr_0=pixels)
    bare = ReferenceBatch.inspect(tmp_path / "bare.npz", DIM)
    assert not bare.has_moments
    for file in (batch, bare):
        parts = list(file.images(4, [1, 2, 7, 50, 51, 119]))
        assert [len(part) for part in parts] == [4, 2]
        assert torch.equal(torch.cat(parts), images[[1, 2, 7, 50, 51, 119]])
        assert torch.equal(torch.cat(list(file.images(50))), images)


@pytest.mark.parametrize("num_references", [2, 3, 100, 261])
def test_halves_have_one_of_each_two_consecutive_images(num_references: int) -> None:
    held_out, others = halves(num_references)
    assert np.union1d(held_out, others).tolist() == list(range(num_references))
    assert (held_out // 2).tolist() == list(range(num_references // 2))
    assert len(held_out) + len(others) == num_references
    if num_references > 3:
        assert 0.3 < (held_out % 2).mean() < 0.7


@pytest.mark.parametrize("order", ["sorted", "in turn"])
@pytest.mark.parametrize("limit", [1_000, 5_000])
def test_held_out_images_are_of_every_class(order: str, limit: int) -> None:
    classes = np.repeat(np.arange(10), 1_000) if order == "sorted" else np.tile(np.arange(10), 1_000)
    indices = held_out_indices(10_000, limit)
    assert len(set(indices)) == limit
    assert indices == sorted(set(indices) & set(halves(10_000)[0].tolist()))
    counts = np.bincount(classes[indices], minlength=10) / (limit / 10)
    # Three standard deviations of a binomial share: 0.28 for 100 images of a class, 0.13 for 500.
    assert np.abs(counts - 1).max() < 3 * np.sqrt(0.9 / (limit / 10))
    others = np.bincount(classes[halves(10_000)[1]], minlength=10) / 500
    assert np.abs(others - 1).max() < 3 * np.sqrt(0.9 / 500)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((120, 8, 8, 3), np.uint8)}, "holds images: a reference batch"),
        ({"arr_0": np.zeros((120, 8, 8, 3))}, r"arr_0 is \(120, 8, 8, 3\), float64: a reference batch"),
        ({"arr_0": np.zeros((120, 3, 8, 8), np.uint8)}, r"arr_0 is \(120, 3, 8, 8\), uint8"),
        ({"arr_0": np.zeros((120, 8, 8, 3), np.uint8, order="F")}, "arr_0 is in Fortran order: save numpy.ascontig"),
        ({"arr_0": np.zeros((99, 8, 8, 3), np.uint8)}, "holds 99 images, and at least 100 are needed"),
        (
            {"arr_0": np.zeros((120, 8, 8, 3), np.uint8), "mu": np.zeros(DIM)},
            r"should be mu \(5,\) and sigma \(5, 5\)",
        ),
        (
            {"arr_0": np.zeros((120, 8, 8, 3), np.uint8), "mu": np.zeros(4), "sigma": np.zeros((4, 4))},
            r"its moments are .*\(4,\)",
        ),
    ],
)
def test_a_wrong_batch_is_refused_with_the_expected_format(
    tmp_path: Path, content: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "wrong.npz", **content)
    with pytest.raises(Refused, match=message):
        ReferenceBatch.inspect(tmp_path / "wrong.npz", DIM)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"there is no file .*nowhere\.npz.*VIRTUAL_imagenet256"):
        ReferenceBatch.inspect(tmp_path / "nowhere.npz", DIM)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(Refused, match=r"text\.npz is no \.npz file of arrays"):
        ReferenceBatch.inspect(tmp_path / "text.npz", DIM)
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"no array")
    with pytest.raises(Refused, match=r"zip\.npz is no \.npz file of arrays"):
        ReferenceBatch.inspect(tmp_path / "zip.npz", DIM)


def test_moments_that_are_not_finite_are_refused(
    tmp_path: Path, pixels: np.ndarray, moments: dict[str, np.ndarray]
) -> None:
    moments["mu"][2] = np.nan
    np.savez(tmp_path / "batch.npz", arr_0=pixels, **moments)
    with pytest.raises(Refused, match="its moments contain NaN"):
        ReferenceBatch.inspect(tmp_path / "batch.npz", DIM).moments()


@pytest.mark.parametrize("mean_type", [np.float32, np.float64])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_official_statistics_are_read_as_numpy_arrays_or_tensors(
    tmp_path: Path, moments: dict[str, np.ndarray], make: Callable[[np.ndarray], Any], mean_type: type
) -> None:
    """The official code saves the results of numpy's mean and cov; the mean may be float32."""
    torch.save({"m": make(moments["mu"].astype(mean_type)), "s": make(moments["sigma"])}, tmp_path / "statistic.pth")
    assert statistic_file(tmp_path) == tmp_path / "statistic.pth"
    found = read_statistic(statistic_file(tmp_path / "statistic.pth"), DIM)
    np.testing.assert_array_equal(found.mean_F, moments["mu"])
    np.testing.assert_array_equal(found.covariance_FF, moments["sigma"])
    assert found.mean_F.dtype == np.float64


def test_statistics_of_an_older_numpy_are_read(tmp_path: Path, moments: dict[str, np.ndarray]) -> None:
    """Before numpy 2 the module of arrays was numpy.core; the file on the Hub is older."""
    saved = io.BytesIO()
    torch.save({"m": moments["mu"], "s": moments["sigma"]}, saved)
    path = tmp_path / "statistic.pth"
    with zipfile.ZipFile(saved) as new, zipfile.ZipFile(path, "w") as old:
        for name in new.namelist():
            data = new.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, data)
    np.testing.assert_array_equal(read_statistic(path, DIM).covariance_FF, moments["sigma"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": np.zeros(DIM)}, r"holds mu: statistics of the official code are a mapping of m \(5,\)"),
        ([1, 2], "holds a list: statistics"),
        ({"m": np.zeros(4), "s": np.zeros((4, 4))}, r"holds m \(4,\) and s \(4, 4\)"),
        ({"m": np.zeros(DIM), "s": print}, "may run code"),
    ],
)
def test_wrong_statistics_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "statistic.pth")
    with pytest.raises(Refused, match=message):
        read_statistic(tmp_path / "statistic.pth", DIM)
    with pytest.raises(Refused, match=r"there is no file .*nowhere.*huggingface\.co/microsoft"):
        statistic_file(tmp_path / "nowhere")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """100 grey images of 8 x 8: 50 PNG files, and 50 in a subfolder."""
    values = np.random.default_rng(2).integers(0, 256, (100, 8, 8), dtype=np.uint8)
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for index, image in enumerate(values):
        name = f"{index:03d}.png" if index < 50 else f"more/{index:03d}.PNG"
        Image.fromarray(image).save(root / name, format="PNG")
    (root / "notes.txt").write_text("no image")
    return root


def test_a_folder_gives_images_with_the_teachers_channels(folder: Path) -> None:
    grey = ReferenceFolder.inspect(folder, (1, 8, 8))
    images = torch.cat(list(grey.images(30, (1, 8, 8))))
    assert images.shape == (100, 1, 8, 8)
    assert images[0, 0, 0, 0].item() == pytest.approx(Image.open(folder / "000.png").getpixel((0, 0)) / 255)
    colours = torch.cat(list(ReferenceFolder.inspect(folder, (3, 8, 8)).images(100, (3, 8, 8))))
    assert torch.equal(colours, images.expand(-1, 3, -1, -1))
    assert torch.equal(torch.cat(list(grey.images(2, (1, 8, 8), [1, 49, 51]))), images[[1, 49, 51]])


def test_a_folders_hash_covers_names_and_contents(folder: Path) -> None:
    before = ReferenceFolder.inspect(folder, (1, 8, 8)).sha256()
    (folder / "notes.txt").write_text("still no image")
    assert ReferenceFolder.inspect(folder, (1, 8, 8)).sha256() == before
    (folder / "000.png").rename(folder / "zzz.png")
    assert ReferenceFolder.inspect(folder, (1, 8, 8)).sha256() != before


def test_a_folder_that_cannot_be_a_reference_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"nowhere is no folder of images"):
        ReferenceFolder.inspect(tmp_path / "nowhere", (1, 8, 8))
    with pytest.raises(
        Refused, match=r"000\.png is 8 x 8, and this teacher's images are 16 x 16: images are not resized"
    ):
        ReferenceFolder.inspect(folder, (1, 16, 16))
    (folder / "000.png").unlink()
    with pytest.raises(Refused, match="holds 99 PNG and JPEG images, and at least 100 are needed"):
        ReferenceFolder.inspect(folder, (1, 8, 8))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (9, 8)), r"070\.PNG is 9 x 8"),
        (Image.new("RGBA", (8, 8)), r"070\.PNG has mode RGBA: give images of 8 bits"),
        (Image.new("I;16", (8, 8)), r"070\.PNG has mode I;16"),
        (None, r"070\.PNG cannot be read as an image"),
    ],
)
def test_an_image_that_does_not_fit_is_named(folder: Path, image: Image.Image | None, message: str) -> None:
    odd = folder / "more" / "070.PNG"
    if image is None:
        odd.write_bytes(odd.read_bytes()[:60])
    else:
        image.save(odd, format="PNG")
    with pytest.raises(Refused, match=message):
        list(ReferenceFolder.inspect(folder, (1, 8, 8)).images(50, (1, 8, 8)))
