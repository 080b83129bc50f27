"""Where sampled images are kept as they are made: a folder of PNG files, the ADM evaluator's npz, or one grid.

Folder and npz know which images they hold and what was asked for, so that a stopped job goes on and another job is
refused. The npz is put together at the end, from parts in a hidden folder beside it.
"""

from __future__ import annotations

import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.images import byte_images, image_grid, save_images, save_png
from shards.core.errors import Failed, Refused
from shards.core.mismatch import flat
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
"""A temporary file this old belongs to a process that was killed: a living one takes seconds."""
WRITERS = 8
"""Images of a folder that are written side by side."""
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip file can tell: the same images shall be the same bytes."""
CHUNK_BYTES = 2**24

Request = Mapping[str, Any]
"""All that determines the images, as JSON: `num_images` may grow, the rest must stay."""
Bytes = npt.NDArray[np.uint8]


class ImageStore(ABC):
    """Holds the images 0 .. N-1 of one request, those that are made so far."""

    def __init__(self, request: Request) -> None:
        self.request = dict(request)
        self.kept_N = np.zeros(self.request["num_images"], dtype=bool)

    @property
    def num_kept(self) -> int:
        return int(self.kept_N.sum())

    @property
    def is_complete(self) -> bool:
        """Whether no image is missing."""
        return bool(self.kept_N.all())

    def left_behind(self) -> str:
        """What a job that stops now leaves, in words."""
        return f"{self.num_kept:,} of {len(self.kept_N):,} images are made and kept"

    def holds(self, first: int, count: int) -> bool:
        """Whether the images `first` .. `first + count - 1` are all there."""
        return bool(self.kept_N[first : first + count].all())

    @abstractmethod
    def begin(self) -> None:
        """Write down what is asked for, before the first image, where that is kept."""

    def keep(self, first: int, images_BIHW: Tensor) -> None:
        """Keep images in [0, 1] under the numbers from `first` on; once back, they are on disk.

        Raises:
            Refused: the place cannot be written to.
            Failed: the disk is full.
        """
        self._write(first, images_BIHW)
        self.kept_N[first : first + len(images_BIHW)] = True

    @abstractmethod
    def _write(self, first: int, images_BIHW: Tensor) -> None: ...

    @abstractmethod
    def finish(self, labels_N: npt.NDArray[np.int64]) -> None:
        """Put together what is put together once all images are there."""


class ImageFolder(ImageStore):
    """000000.png, 000001.png ... and sample.json, which tells what they are."""

    def __init__(self, folder: Path, request: Request) -> None:
        """Look at what is there.

        Raises:
            Refused: images of another request, or something else.
        """
        super().__init__(request)
        self.folder = folder
        self.found = _read_request(folder)
        if self.found is not None:
            refuse_other_request(folder, self.found, self.request)
        elif there := list_names(folder, ""):
            raise Refused(
                f"{folder} holds something already ({there[0]}), and no {REQUEST_FILE} that tells what images these are: "
                "name a new folder"
            )
        for name in list_names(folder, ".png"):
            stem = name.removesuffix(".png")
            if stem.isdecimal() and int(stem) < len(self.kept_N):
                self.kept_N[int(stem)] = True

    def begin(self) -> None:
        remove_stale_temporaries(self.folder, STALE_SECONDS)
        if self.found != self.request:
            commit_bytes(self.folder / REQUEST_FILE, _as_json(self.request))

    def _write(self, first: int, images_BIHW: Tensor) -> None:
        # Of a batch that was cut short by a kill, only what is missing. A disk takes long to have each file for sure,
        # and no longer for several at a time.
        count = len(images_BIHW)
        missing = [index for index in range(first, first + count) if not self.kept_N[index]]
        with ThreadPoolExecutor(WRITERS) as pool:
            images = (images_BIHW[index - first : index - first + 1] for index in missing)
            for _ in pool.map(save_images, repeat(self.folder), images, missing):
                pass

    def finish(self, labels_N: npt.NDArray[np.int64]) -> None:
        """Nothing is left to do: every image stands in its own file."""


class NpzFile(ImageStore):
    """The file that the evaluator of guided-diffusion reads: `arr_0` uint8 (N, H, W, 3), `arr_1` int64 labels.

    Images of one channel are stored with three equal ones. What was asked for stands in the zip file's comment.
    """

    def __init__(self, path: Path, request: Request) -> None:
        """Look at what is there.

        Raises:
            Refused: images of another request, or no file of this project's.
        """
        super().__init__(request)
        self.path = path
        self.parts = path.parent / f".{path.name}.parts"
        self.whole = _request_in(path) if path.exists() else None
        if self.whole is not None:
            refuse_other_request(path, self.whole, self.request)
            self.kept_N[: self.whole["num_images"]] = True
        self.found = _read_request(self.parts)
        if self.found is not None:
            refuse_other_request(self.parts, self.found, self.request)
            for first, count in self._parts():
                self.kept_N[first : first + count] = True

    def begin(self) -> None:
        remove_stale_temporaries(self.path.parent, STALE_SECONDS)
        remove_stale_temporaries(self.parts, STALE_SECONDS)
        if self.found is None:
            self._clear()
        if self.found != self.request:
            commit_bytes(self.parts / REQUEST_FILE, _as_json(self.request))

    def _write(self, first: int, images_BIHW: Tensor) -> None:
        rows_BHWC = byte_images(images_BIHW).numpy()
        if rows_BHWC.ndim == 3:
            rows_BHWC = np.repeat(rows_BHWC[..., None], 3, axis=-1)
        buffer = io.BytesIO()
        np.save(buffer, rows_BHWC)
        commit_bytes(self.parts / f"{first:09d}-{len(rows_BHWC)}.npy", buffer.getvalue())

    def finish(self, labels_N: npt.NDArray[np.int64]) -> None:
        """Join the parts into the file, one in memory at a time, and take them away.

        Raises:
            Failed: a part is damaged, or the disk is full.
            Refused: the place cannot be written to.
        """
        if self.whole != self.request:
            commit_file(self.path, lambda temporary: self._join(temporary, labels_N))
        self._clear()

    def _clear(self) -> None:
        """Take the parts away, what tells whose they are as the last."""
        if not self.parts.exists():
            return
        for part in sorted(self.parts.iterdir(), key=lambda path: path.name == REQUEST_FILE):
            remove(part)
        self.parts.rmdir()

    def _join(self, path: Path, labels_N: npt.NDArray[np.int64]) -> None:
        rows = self._rows()
        first_rows = next(rows)
        shape = (len(labels_N), *first_rows.shape[1:])
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = _as_json(self.request)
            with _entry(archive, "arr_0", "|u1", shape) as entry:
                entry.write(first_rows.tobytes())
                for rows_BHWC in rows:
                    entry.write(rows_BHWC.tobytes())
            with _entry(archive, "arr_1", "<i8", labels_N.shape) as entry:
                entry.write(labels_N.astype("<i8").tobytes())

    def _rows(self) -> Iterator[Bytes]:
        """All images in order, some (B, H, W, 3) at a time: those of a file that grows, then the parts."""
        next_image = 0
        if self.whole is not None:
            for rows_BHWC in _rows_in(self.path):
                next_image += len(rows_BHWC)
                yield rows_BHWC
        # Batches of several sizes may overlap.
        for first, count in self._parts():
            if first <= next_image < first + count:
                yield _load_part(self.parts / f"{first:09d}-{count}.npy")[next_image - first :]
                next_image = first + count

    def _parts(self) -> list[tuple[int, int]]:
        """First image and number of images of every finished part, in order."""
        names = [name.removesuffix(".npy").partition("-") for name in list_names(self.parts, ".npy")]
        return sorted((int(first), int(count)) for first, _, count in names)


class Grid(ImageStore):
    """One picture of all images, kept in memory and written at the end."""

    def __init__(self, path: Path, request: Request, columns: int) -> None:
        super().__init__(request)
        self.path = path
        self.columns = columns
        self.images: list[Tensor] = []

    def begin(self) -> None:
        """Nothing is kept before the end."""

    def left_behind(self) -> str:
        return "a grid is written at its end only, nothing is kept"

    def _write(self, first: int, images_BIHW: Tensor) -> None:
        self.images.append(images_BIHW.cpu())

    def finish(self, labels_N: npt.NDArray[np.int64]) -> None:
        save_png(image_grid(torch.cat(self.images), self.columns), self.path)


def refuse_other_request(where: Path, found: Request, wanted: Request) -> None:
    """Confirm that images which are there are those that are asked for, or the first of them.

    Raises:
        Refused: they are others, or more; names what differs.
    """
    there, asked = flat(found), flat(wanted)
    differing = [
        f"{key}: {there.get(key, 'nothing')!r} -> {asked.get(key, 'nothing')!r}"
        for key in sorted(there.keys() | asked.keys())
        if key != "num_images" and there.get(key) != asked.get(key)
        # Of another method, that it needs a teacher or none goes without saying.
        if found.get("method") == wanted["method"] or not key.startswith("lineage")
    ]
    if differing:
        raise Refused(
            f"{where} holds other images (there -> asked): {'; '.join(differing)}. "
            "Ask for the same, or choose another place"
        )
    if found["num_images"] > wanted["num_images"]:
        raise Refused(
            f"{where} was begun for {found['num_images']:,} images, and their number may only grow: "
            f"{wanted['num_images']:,} are asked for"
        )


def _as_json(request: Request) -> bytes:
    return (json.dumps(request, indent=2, sort_keys=True) + "\n").encode()


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        request = json.loads(content)
    except ValueError:
        request = None
    if not isinstance(request, dict) or not isinstance(request.get("num_images"), int):
        raise Refused(f"{where} does not tell what images these are: choose another place")
    return request


def _read_request(folder: Path) -> dict[str, Any] | None:
    path = folder / REQUEST_FILE
    return _parsed(read_bytes(path), str(path)) if path.is_file() else None


def _request_in(path: Path) -> dict[str, Any]:
    with _reading_zip(path) as archive:
        return _parsed(archive.comment, f"{path}, which `tokenleap sample` did not write,")


@contextmanager
def _reading_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError) as error:
        raise Refused(
            f"{path} is no whole npz file ({error}): take it away, or choose another place"
        ) from error


def _rows_in(path: Path) -> Iterator[Bytes]:
    """The images in an npz file of this project's, some at a time."""
    with _reading_zip(path) as archive, archive.open("arr_0.npy") as entry:
        np.lib.format.read_magic(entry)
        (count, *shape), _, _ = np.lib.format.read_array_header_1_0(entry)
        size = int(np.prod(shape))
        at_once = max(1, CHUNK_BYTES // size)
        for first in range(0, count, at_once):
            number = min(at_once, count - first)
            yield np.frombuffer(entry.read(number * size), np.uint8).reshape(number, *shape)


def _load_part(path: Path) -> Bytes:
    try:
        rows_BHWC: Bytes = np.load(path)
    except (ValueError, EOFError) as error:
        raise Failed(f"{path} is damaged ({error}): remove it and give the same command again") from error
    return rows_BHWC


@contextmanager
def _entry(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """An array in an npz file, its header written and its numbers to follow."""
    # An entry's size is not known when it is begun: it may pass 4 GiB.
    with archive.open(zipfile.ZipInfo(f"{name}.npy", ZIP_DATE), "w", force_zip64=True) as entry:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(entry, header)
        yield entry
