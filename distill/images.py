"""Image grids, with or without row captions, and reproducible PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from shards.storage.files import commit_bytes

CAPTION_SIZE = 14
CAPTION_MARGIN = 10
"""Font size and horizontal margin of captions in pixels."""

SHEET_WIDTH = 1024
"""Approximate width in pixels of a grid of many images."""


def enlargement(side: int) -> int:
    """Scale factor for small images: 8-pixel digits are enlarged, images of 32 pixels or more are not."""
    return max(1, 32 // side)


def grid_size(side: int) -> tuple[int, int]:
    """Columns and rows of a grid of many images: 20 x 10 up to a side of 32 pixels, 4 x 4 at 256."""
    columns = min(20, max(2, SHEET_WIDTH // (side * enlargement(side))))
    return columns, min(10, columns)


def image_grid(images_BIHW: Tensor, columns: int, scale: int | None = None, gap: int = 4) -> Image.Image:
    """Arrange images (B, 1 or 3, height, width), clamped to [0, 1], row by row on a white background, `gap` pixels apart.

    The last row may be shorter. Each image pixel becomes a square of side `scale`; None for `enlargement`.

    Raises:
        ValueError: There are no images or no columns, or the number of channels is not 1 or 3.
    """
    pixels = byte_images(images_BIHW)
    scale = enlargement(pixels.shape[2]) if scale is None else scale
    if columns < 1 or scale < 1 or gap < 0:
        raise ValueError(f"a grid needs columns >= 1, scale >= 1 and gap >= 0, got {columns}, {scale}, {gap}")
    count, height, width = pixels.shape[:3]
    rows = -(-count // columns)
    columns = min(columns, count)
    cell_height, cell_width = height * scale, width * scale
    size = columns * (cell_width + gap) - gap, rows * (cell_height + gap) - gap
    sheet = Image.new("L" if pixels.ndim == 3 else "RGB", size, "white")
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        enlarged = Image.fromarray(image.numpy()).resize((cell_width, cell_height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (column * (cell_width + gap), row * (cell_height + gap)))
    return sheet


def captioned_grid(rows: Mapping[str, Tensor], scale: int | None = None, gap: int = 4) -> Image.Image:
    """Draw one row of images for each name, with the name on the left; arguments are those of `image_grid`.

    Raises:
        ValueError: There are no rows, or image shapes differ.
    """
    shapes = {name: tuple(images.shape[1:]) for name, images in rows.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"the rows of a captioned grid must contain images of one shape, got {shapes}")
    strips = {name: image_grid(images, max(1, len(images)), scale, gap) for name, images in rows.items()}
    font = ImageFont.load_default(CAPTION_SIZE)
    caption_width = round(max(font.getlength(name) for name in rows)) + 2 * CAPTION_MARGIN
    row_height = max(CAPTION_SIZE + gap, *(strip.height for strip in strips.values()))
    size = caption_width + max(strip.width for strip in strips.values()), len(strips) * (row_height + gap) - gap
    sheet = Image.new(next(iter(strips.values())).mode, size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, strip) in enumerate(strips.items()):
        top = index * (row_height + gap)
        draw.text((caption_width - CAPTION_MARGIN, top + row_height // 2), name, fill="black", font=font, anchor="rm")
        sheet.paste(strip, (caption_width, top))
    return sheet


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image atomically; equal images give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    commit_bytes(path, buffer.getvalue())


def save_images(folder: Path, images_BIHW: Tensor, first: int = 0) -> None:
    """Write images in [0, 1] at their own size as 000000.png, 000001.png, ..., numbered from `first`."""
    for index, image in enumerate(byte_images(images_BIHW), start=first):
        save_png(Image.fromarray(image.numpy()), folder / f"{index:06d}.png")


def byte_images(images_BIHW: Tensor) -> Tensor:
    """Convert images in [0, 1] to uint8: (B, H, W) for one channel, (B, H, W, 3) for three."""
    if images_BIHW.ndim != 4 or images_BIHW.shape[1] not in (1, 3) or len(images_BIHW) == 0:
        raise ValueError(f"images must be (B, 1 or 3, height, width) with B > 0, got {tuple(images_BIHW.shape)}")
    scaled = images_BIHW.detach().cpu().to(torch.float32).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return scaled.squeeze(1) if scaled.shape[1] == 1 else scaled.permute(0, 2, 3, 1).contiguous()
