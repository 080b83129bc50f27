"""Grids and PNG files: positions of pixels, and files without metadata."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from distill.images import captioned_grid, enlargement, grid_size, image_grid, save_images, save_png

pytestmark = pytest.mark.quick


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_pixels_become_squares_and_images_fill_rows():
    images = torch.tensor([[[[0.0, 1.0]]], [[[0.4, 0.6]]], [[[0.2, 0.2]]]])
    grid = np.asarray(image_grid(images, columns=2, scale=2, gap=1))
    assert grid.tolist() == [
        [0, 0, 255, 255, 255, 102, 102, 153, 153],
        [0, 0, 255, 255, 255, 102, 102, 153, 153],
        [255] * 9,
        [51, 51, 51, 51, 255, 255, 255, 255, 255],
        [51, 51, 51, 51, 255, 255, 255, 255, 255],
    ]


def test_colour_images_keep_their_channels():
    images = torch.tensor([1.0, 0.0, 0.5]).view(1, 3, 1, 1)
    grid = image_grid(images, columns=4, scale=3, gap=2)
    assert grid.mode == "RGB"
    assert grid.size == (3, 3)
    assert grid.getpixel((1, 1)) == (255, 0, 128)


@pytest.mark.parametrize(
    ("side", "scale", "size"),
    [(8, 4, (20, 10)), (32, 1, (20, 10)), (64, 1, (16, 10)), (256, 1, (4, 4)), (512, 1, (2, 2))],
)
def test_a_grid_of_many_stays_a_thousand_pixels_wide(side, scale, size):
    assert enlargement(side) == scale
    assert grid_size(side) == size
    columns, rows = size
    grid = image_grid(torch.zeros(columns * rows, 1, side, side), columns)
    assert grid.size == tuple(count * side * scale + (count - 1) * 4 for count in size)
    assert grid.width < 1100


def test_values_outside_the_range_are_clamped():
    grid = image_grid(torch.tensor([-0.5, 1.5]).view(1, 1, 1, 2), columns=1, scale=1)
    assert np.asarray(grid).tolist() == [[0, 255]]


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (2, 2, 8, 8), (1, 8, 8)])
def test_what_is_not_a_batch_of_images_is_refused(shape):
    with pytest.raises(ValueError, match="images must be"):
        image_grid(torch.zeros(shape), columns=2)


def test_a_grid_without_columns_is_refused():
    with pytest.raises(ValueError, match="columns >= 1"):
        image_grid(torch.zeros(1, 1, 2, 2), columns=0)


def test_captioned_rows_are_stacked_right_of_their_names():
    images = torch.zeros(3, 1, 8, 8)
    grid = captioned_grid({"teacher": images, "student-1": images[:2]}, scale=4, gap=4)
    pixels = np.asarray(grid)
    strip = 3 * 32 + 2 * 4
    left = grid.width - strip
    assert grid.height == 2 * 32 + 4
    assert np.array_equal(pixels[:32, left:], np.asarray(image_grid(images, 3)))
    assert (pixels[36:, left + 68 :] == 255).all()
    assert (pixels[36:, left : left + 32] == 0).all()
    for row in (pixels[:32, :left], pixels[36:, :left]):
        assert row.min() < 100
        assert (row[:, -8:] == 255).all()


def test_captioned_rows_in_colour():
    grid = captioned_grid({"a": torch.full((1, 3, 8, 8), 0.5)})
    assert grid.mode == "RGB"
    assert grid.getpixel((grid.width - 1, 0)) == (128, 128, 128)


def test_captioned_rows_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="images of one shape"):
        captioned_grid({"a": torch.zeros(1, 1, 8, 8), "b": torch.zeros(1, 1, 16, 16)})
    with pytest.raises(ValueError, match="images of one shape"):
        captioned_grid({})


def test_png_contains_the_pixels_and_no_metadata(tmp_path):
    grid = image_grid(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), columns=2)
    save_png(grid, tmp_path / "grid.png")
    save_png(grid, tmp_path / "again.png")
    data = (tmp_path / "grid.png").read_bytes()
    assert np.array_equal(read(tmp_path / "grid.png"), np.asarray(grid))
    assert data == (tmp_path / "again.png").read_bytes()
    assert not any(chunk in data for chunk in (b"tIME", b"tEXt", b"iTXt", b"zTXt", b"eXIf"))


def test_images_are_numbered_from_first(tmp_path):
    images = torch.arange(3).view(3, 1, 1, 1).expand(3, 1, 2, 2) / 255.0
    save_images(tmp_path / "out", images, first=9)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000009.png", "000010.png", "000011.png"]
    assert read(tmp_path / "out" / "000011.png").tolist() == [[2, 2], [2, 2]]
