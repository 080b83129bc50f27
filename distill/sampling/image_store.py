"""Stores of sampled images: a folder of PNG files, the ADM evaluator's npz, or one grid.

Folder and npz record which images they contain and the request that determines them, so that a stopped job resumes and a
different job is refused. The npz is joined at the end, from parts in a hidden folder next to it.
"""

from __future__ import annotations

import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.images import byte_images, image_grid, save_images, save_png
from shards.core.errors import Failed, Refused, join_first
from shards.core.mismatch import format_mismatch, mismatches
from shards.storage.files import (
    commit_bytes,
    commit_file,
    list_names,
    read_bytes,
    remove,
    remove_stale_temporaries,
)

REQUEST_FILE = "sample.json"
STALE_SECONDS = 3600.0
"""Temporary files this old belong to killed processes: writing one takes seconds."""
WRITERS = 8
"""Images of a folder that are written in parallel."""
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date of the zip format, so that equal images give equal bytes."""
CHUNK_BYTES = 2**24

Request = Mapping[str, Any]
"""Everything that determines the images, as JSON: `num_images` may grow, the rest must stay."""
Bytes = npt.NDArray[np.uint8]


class ImageStore(ABC):
    """Stores the images 0 .. N-1 of one request, in any order; `folder` contains the request, None if nothing resumes."""

    def __init__(self, request: Request, folder: Path | None = None) -> None:
        """Raises Refused if the folder contains another request."""
        self.request = dict(request)
        self.folder = folder
        self.saved_N = np.zeros(self.request["num_images"], dtype=bool)
        self.stored_request = None
        if folder is not None and (file := folder / REQUEST_FILE).is_file():
            self.stored_request = _parsed(read_bytes(file), str(file))
            refuse_other_request(folder, self.stored_request, self.request)

    @property
    def num_saved(self) -> int:
        return int(self.saved_N.sum())

    @property
    def is_complete(self) -> bool:
        return bool(self.saved_N.all())

    def describe_progress(self) -> str:
        """What a job that stops now leaves on disk."""
        return f"{self.num_saved:,} of {len(self.saved_N):,} images are made and kept"

    def begin(self) -> None:
        """Prepare for the first image; stores that can be resumed write the request."""
        if self.folder is not None:
            remove_stale_temporaries(self.folder, STALE_SECONDS)
            if self.stored_request != self.request:
                commit_bytes(self.folder / REQUEST_FILE, _as_json(self.request))

    def save(self, first: int, images_BIHW: Tensor) -> None:
        """Save images in [0, 1] as numbers `first` onwards; resumable stores have them on disk when this returns.

        Raises:
            Refused: the folder cannot be written to.
            Failed: the disk is full.
        """
        self._write(first, images_BIHW)
        self.saved_N[first : first + len(images_BIHW)] = True

    @abstractmethod
    def _write(self, first: int, images_BIHW: Tensor) -> None: ...

    @abstractmethod
    def finish(self, labels_N: npt.NDArray[np.int64]) -> None:
        """Write what can only be written once all images are saved."""


class ImageFolder(ImageStore):
    """000000.png, 000001.png ... and sample.json with the request."""

    folder: Path

    def __init__(self, folder: Path, request: Request) -> None:
        """Find the saved images.

        Raises:
            Refused: the folder contains images of another request, or something else.
        """
        super().__init__(request, folder)
        if self.stored_request is None and (names := list_names(folder, "")):
            raise Refused(
                f"{folder} holds something already ({names[0]}), and no {REQUEST_FILE} that describes these images: "
                "name a new folder"
            )
        for name in list_names(folder, ".png"):
            stem = name.removesuffix(".png")
            if stem.isdecimal() and int(stem) < len(self.saved_N):
                self.saved_N[int(stem)] = True

    def _write(self, first: int, images_BIHW: Tensor) -> None:
        # If a kill interrupted this batch earlier, write only the missing images. Syncing one file to disk is slow, and
        # syncing several in parallel takes no longer.
        missing = [index for index in range(first, first + len(images_BIHW)) if not self.saved_N[index]]
        with ThreadPoolExecutor(WRITERS) as pool:
            images = (images_BIHW[index - first : index - first + 1] for index in missing)
            for _ in pool.map(save_images, repeat(self.folder), images, missing):
                pass

    def finish(self, labels_N: npt.NDArray[np.int64]) -> None:
        """Does nothing: each image is a file of its own."""


class NpzFile(ImageStore):
    """The file that the evaluator of guided-diffusion reads: `arr_0` uint8 (N, H, W, 3), `arr_1` int64 labels.

    Images of one channel are stored with three equal ones. The zip file's comment is the request.
    """

    folder: Path

    def __init__(self, path: Path, request: Request) -> None:
        """Find the saved images.

        Raises:
            Refused: the file or its parts contain images of another request, or this project did not write the file.
        """
        self.path = path
        self.joined_request = None
        if path.exists():
            with _reading_zip(path) as archive:
                self.joined_request = _parsed(archive.comment, f"{path}, which `tokenleap sample` did not write,")
            refuse_other_request(path, self.joined_request, request)
        super().__init__(request, path.parent / f".{path.name}.parts")
        if self.joined_request is not None:
            self.saved_N[: self.joined_request["num_images"]] = True
        if self.stored_request is not None:
            for first, count in self._parts():
                self.saved_N[first : first + count] = True

    def begin(self) -> None:
        remove_stale_temporaries(self.path.parent, STALE_SECONDS)
        if self.stored_request is None:
            self._remove_parts()
        super().begin()

    def _write(self, first: int, images_BIHW: Tensor) -> None:
        rows_BHWC = byte_images(images_BIHW).numpy()
        if rows_BHWC.ndim == 3:
            rows_BHWC = np.repeat(rows_BHWC[..., None], 3, axis=-1)
        buffer = io.BytesIO()
        np.save(buffer, rows_BHWC)
        commit_bytes(self.folder / f"{first:09d}-{len(rows_BHWC)}.npy", buffer.getvalue())

    def finish(self, labels_N: npt.NDArray[np.int64]) -> None:
        """Join the parts into the file, one in memory at a time, and delete them.

        Raises:
            Failed: a part is damaged, or the disk is full.
            Refused: the folder cannot be written to.
        """
        if self.joined_request != self.request:
            commit_file(self.path, lambda temporary: self._join(temporary, labels_N.astype("<i8")))
        self._remove_parts()

    def _remove_parts(self) -> None:
        """Delete the parts, and the request last: parts without a request are never used."""
        if not self.folder.exists():
            return
        for part in sorted(self.folder.iterdir(), key=lambda path: path.name == REQUEST_FILE):
            remove(part)
        self.folder.rmdir()

    def _join(self, path: Path, labels_N: npt.NDArray[np.int64]) -> None:
        rows = self._rows()
        first_rows = next(rows)
        shape = (len(labels_N), *first_rows.shape[1:])
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = _as_json(self.request)
            _add_array(archive, "arr_0", "|u1", shape, chain([first_rows], rows))
            _add_array(archive, "arr_1", "<i8", labels_N.shape, [labels_N])

    def _rows(self) -> Iterator[Bytes]:
        """All images in order, (B, H, W, 3) at a time: those of a smaller joined file, then those of the parts."""
        next_image = 0
        if self.joined_request is not None:
            next_image = self.joined_request["num_images"]
            yield from _rows_in(self.path)
        # Parts overlap if the batch size changed.
        for first, count in self._parts():
            if first <= next_image < first + count:
                path = self.folder / f"{first:09d}-{count}.npy"
                try:
                    yield np.load(path)[next_image - first :]
                except (ValueError, EOFError) as error:
                    raise Failed(f"{path} is damaged ({error}): remove it and run the same command again") from error
                next_image = first + count

    def _parts(self) -> list[tuple[int, int]]:
        """First image and number of images of every finished part, in order."""
        names = [name.removesuffix(".npy").partition("-") for name in list_names(self.folder, ".npy")]
        return sorted((int(first), int(count)) for first, _, count in names)


class Grid(ImageStore):
    """One picture of all images, held in memory and written at the end."""

    def __init__(self, path: Path, request: Request, columns: int) -> None:
        super().__init__(request)
        self.path = path
        self.columns = columns
        self.images: list[Tensor] = []

    def describe_progress(self) -> str:
        return "a grid is written at its end only, nothing is kept"

    def _write(self, first: int, images_BIHW: Tensor) -> None:
        self.images.append(images_BIHW.cpu())

    def finish(self, labels_N: npt.NDArray[np.int64]) -> None:
        save_png(image_grid(torch.cat(self.images), self.columns), self.path)


def refuse_other_request(path: Path, stored: Request, requested: Request) -> None:
    """Check that stored images are the requested ones, or the first of them.

    Raises:
        Refused: they are others, or more; names what differs.
    """
    differing = [
        format_mismatch(mismatch)
        for mismatch in mismatches(stored, requested, none_is_missing=True)
        if mismatch.key != "num_images"
        # If the methods differ, do not list whether they need a teacher.
        if stored.get("method") == requested["method"] or not mismatch.key.startswith("lineage")
    ]
    if differing:
        raise Refused(
            f"{path} holds other images: {join_first(differing)}. Request the same images, or choose another path"
        )
    if stored["num_images"] > requested["num_images"]:
        raise Refused(
            f"{path} was started for {stored['num_images']:,} images, and their number may only grow: "
            f"{requested['num_images']:,} are requested"
        )


def _as_json(request: Request) -> bytes:
    return (json.dumps(request, indent=2, sort_keys=True) + "\n").encode()


def _parsed(content: bytes, source: str) -> dict[str, Any]:
    try:
        request = json.loads(content)
    except ValueError:
        request = None
    if not isinstance(request, dict) or not isinstance(request.get("num_images"), int):
        raise Refused(f"{source} does not describe its images: choose another path")
    return request


@contextmanager
def _reading_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError) as error:
        raise Refused(f"{path} is no complete npz file ({error}): delete it, or choose another path") from error


def _rows_in(path: Path) -> Iterator[Bytes]:
    """The images in an npz file that `NpzFile` wrote, up to `CHUNK_BYTES` at a time."""
    with _reading_zip(path) as archive, archive.open("arr_0.npy") as entry:
        np.lib.format.read_magic(entry)
        (count, *shape), _, _ = np.lib.format.read_array_header_1_0(entry)
        size = int(np.prod(shape))
        chunk = max(1, CHUNK_BYTES // size)
        for first in range(0, count, chunk):
            number = min(chunk, count - first)
            yield np.frombuffer(entry.read(number * size), np.uint8).reshape(number, *shape)


def _add_array(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], parts: Iterable[npt.NDArray[Any]]
) -> None:
    # The entry may exceed 4 GiB, and zipfile cannot derive this from the header.
    with archive.open(zipfile.ZipInfo(f"{name}.npy", ZIP_DATE), "w", force_zip64=True) as entry:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(entry, header)
        for part in parts:
            entry.write(part.tobytes())
