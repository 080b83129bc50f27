"""References of protocols: guided-diffusion's batches, statistics of the official code, folders of images.

Each kind can be inspected by reading only names, headers and a folder's first image, so that a wrong file is
refused before any work.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from distill.evaluation.image_metrics import Moments
from generate_pairs.teachers.importing.checkpoint_file import read_checkpoint
from shards.core.errors import Refused

STATISTIC_FILE = "statistic.pth"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
PLAIN_MODES = {"1", "L", "P", "RGB"}
"""Pillow's modes of images with 8 bits a channel and without transparency."""
MIN_REFERENCES = 100
"""A distance to fewer real images is meaningless."""


@dataclass(frozen=True)
class ReferenceBatch:
    """A reference batch of guided-diffusion's evaluator: an npz file of images `arr_0` (N, height, width, 3), uint8.

    Usually it also contains moments `mu` and `sigma`, of many more images.
    """

    path: Path
    shape: tuple[int, ...]
    has_moments: bool

    @classmethod
    def inspect(cls, path: Path, dim: int) -> ReferenceBatch:
        """Read the headers of the file.

        Raises:
            Refused: it is no npz file of such images, or its moments are not of `dim` features.
        """
        headers = _npz_headers(path)
        expected = "a reference batch of guided-diffusion is an .npz file whose arr_0 holds images (N, H, W, 3), uint8"
        if "arr_0" not in headers:
            raise Refused(f"{path} holds {', '.join(headers) or 'nothing'}: {expected}")
        shape, dtype, is_fortran = headers["arr_0"]
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
            raise Refused(f"{path}: arr_0 is {shape}, {dtype}: {expected}")
        if is_fortran:
            raise Refused(f"{path}: arr_0 is in Fortran order: save numpy.ascontiguousarray(arr_0) instead")
        if shape[0] < MIN_REFERENCES:
            raise Refused(f"{path} holds {shape[0]} images, and at least {MIN_REFERENCES} are needed")
        moments = {key: headers[key][0] for key in ("mu", "sigma") if key in headers}
        if moments and moments != {"mu": (dim,), "sigma": (dim, dim)}:
            raise Refused(f"{path}: its moments are {moments}, and should be mu ({dim},) and sigma ({dim}, {dim})")
        return cls(path, shape, bool(moments))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""
        return self.shape[1], self.shape[2]

    def images(self, batch_size: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Its images in [0, 1], (B, 3, height, width), or those with these ascending indices; memory holds one batch."""
        chosen = range(self.shape[0]) if indices is None else indices
        num_bytes = math.prod(self.shape[1:])
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            _read_header(file)
            start = file.seek(0, io.SEEK_CUR)
            for first in range(0, len(chosen), batch_size):
                pixels = bytearray()
                for index in chosen[first : first + batch_size]:
                    file.seek(start + index * num_bytes)
                    pixels += file.read(num_bytes)
                batch_BHWC = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, *self.shape[1:])
                yield batch_BHWC.permute(0, 3, 1, 2) / 255.0

    def moments(self) -> Moments:
        """Its `mu` and `sigma`."""
        with np.load(self.path) as file:
            return _moments(self.path, file["mu"], file["sigma"])


@dataclass(frozen=True)
class ReferenceFolder:
    """A folder of PNG and JPEG images, also in subfolders, all of one size."""

    path: Path
    files: tuple[Path, ...]

    @classmethod
    def inspect(cls, path: Path, image_shape: tuple[int, int, int]) -> ReferenceFolder:
        """List the images and read the first.

        Raises:
            Refused: it is no folder, contains too few images, or the first has another size than the teacher's images.
        """
        if not path.is_dir():
            raise Refused(f"evaluation.reference: {path} is no folder of images")
        files = tuple(sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES))
        if len(files) < MIN_REFERENCES:
            raise Refused(f"{path} holds {len(files)} PNG and JPEG images, and at least {MIN_REFERENCES} are needed")
        folder = cls(path, files)
        folder.read(files[0], image_shape)
        return folder

    def images(
        self, batch_size: int, image_shape: tuple[int, int, int], indices: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """Its images in [0, 1], (B, channels, height, width), or those with these indices.

        Raises:
            Refused: one has another size, more than 8 bits a channel or transparency, or cannot be read.
        """
        files = self.files if indices is None else [self.files[index] for index in indices]
        for first in range(0, len(files), batch_size):
            yield torch.stack([self.read(file, image_shape) for file in files[first : first + batch_size]])

    def read(self, file: Path, image_shape: tuple[int, int, int]) -> Tensor:
        """One image (channels, height, width) in [0, 1], neither resized nor cropped: that would change the distance.

        Raises:
            Refused: as `images`.
        """
        channels, height, width = image_shape
        try:
            with Image.open(file) as image:
                size, mode = image.size, image.mode
                if size == (width, height) and mode in PLAIN_MODES:
                    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise Refused(f"{file} cannot be read as an image: {error}") from error
        if size != (width, height):
            raise Refused(
                f"{file} is {size[0]} x {size[1]}, and this teacher's images are {width} x {height}: images "
                "are not resized, because that would change the distance; give a folder of images of that size"
            )
        if mode not in PLAIN_MODES:
            raise Refused(f"{file} has mode {mode}: give images of 8 bits a channel without transparency, grey or RGB")
        return torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1) / 255.0

    def sha256(self) -> str:
        """Hash of the names and contents of its files, in order."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.relative_to(self.path).as_posix()}\n".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def halves(num_references: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint halves of a reference as ascending indices, int64; the second has the odd one out.

    One of each two consecutive images is in the first half, by a fixed random bit. So both halves have about the same
    classes if the reference is sorted by class, and also if it lists the classes in turn.
    """
    first = np.arange(0, num_references - 1, 2)
    chosen = first + (np.random.Philox(key=0).random_raw(len(first)) & 1).astype(np.int64)
    return chosen, np.setdiff1d(np.arange(num_references), chosen)


def held_out_indices(num_references: int, limit: int) -> list[int]:
    """At most `limit` images of the first half of a reference, one at a random place of each of as many equal parts."""
    half, _ = halves(num_references)
    count = min(limit, len(half))
    place = np.random.Philox(key=1).random_raw(count) / 2.0**64 if count < len(half) else np.zeros(count)
    return half[((np.arange(count) + place) * (len(half) / count)).astype(np.int64)].tolist()


def statistic_file(path: Path) -> Path:
    """The file of moments at a path: the path itself, or `statistic.pth` in it, the official code's name.

    Raises:
        Refused: there is no such file.
    """
    file = path / STATISTIC_FILE if path.is_dir() else path
    if not file.is_file():
        raise Refused(
            f"evaluation.reference: there is no file {file}. The protocol dd reads ImageNet-256_FID_Statistic/"
            f"{STATISTIC_FILE} of huggingface.co/microsoft/distilled_decoding"
        )
    return file


def read_statistic(path: Path, dim: int) -> Moments:
    """Read moments as microsoft/distilled_decoding stores them: a mapping of `m` (F,) and `s` (F, F), numpy or torch.

    Raises:
        Refused: the content is different, or the pickle needs more than arrays.
    """
    with torch.serialization.safe_globals(_array_globals()):
        content = read_checkpoint(path).content
    expected = f"statistics of the official code are a mapping of m ({dim},) and s ({dim}, {dim})"
    if not isinstance(content, dict) or not {"m", "s"} <= content.keys():
        kind = ", ".join(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise Refused(f"{path} holds {kind}: {expected}")
    mean, covariance = np.asarray(content["m"]), np.asarray(content["s"])
    if (mean.shape, covariance.shape) != ((dim,), (dim, dim)):
        raise Refused(f"{path} holds m {mean.shape} and s {covariance.shape}: {expected}")
    return _moments(path, mean, covariance)


def _moments(path: Path, mean: Any, covariance: Any) -> Moments:
    moments = Moments(np.asarray(mean, np.float64), np.asarray(covariance, np.float64))
    if not (np.isfinite(moments.mean_F).all() and np.isfinite(moments.covariance_FF).all()):
        raise Refused(f"{path}: its moments contain NaN or infinite numbers")
    return moments


def _array_globals() -> list[Any]:
    """The globals in a pickle of numpy arrays, by the names that old and new numpy write."""
    rebuild = np.empty(0).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    kinds = [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    return [np.ndarray, np.dtype, *kinds, *((rebuild, name) for name in names)]


def _npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype, bool]]:
    """Shape and dtype of every array of an npz file, and whether it is in Fortran order, without reading the numbers.

    Raises:
        Refused: there is no such file, or it is no npz file.
    """
    if not path.is_file():
        raise Refused(
            f"evaluation.reference: there is no file {path}. The protocol adm reads a reference batch of "
            "guided-diffusion, such as VIRTUAL_imagenet256_labeled.npz"
        )
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    headers[name.removesuffix(".npy")] = _read_header(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Refused(f"{path} is no .npz file of arrays: {error}") from error
    return headers


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    return tuple(shape), dtype, is_fortran
