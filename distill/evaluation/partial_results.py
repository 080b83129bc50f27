"""Partial results of an evaluation: one committed file per method and noise seed, the scores of the rows of real images,
the measured times, and the moments of the teacher's images. They are deleted when evaluation.json is written.

An evaluation of 50,000 images takes hours. Partial results belong to one identity, which contains everything that the
scores depend on; results of another identity are discarded.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distill.evaluation.image_metrics import Moments
from shards.core.errors import Refused
from shards.storage.files import commit_bytes, read_bytes

FOLDER = ".evaluation"
IDENTITY_FILE = "identity.json"
TIMES_FILE = "times.json"
MOMENTS_FILE = "teacher.npz"

Times = dict[str, dict[str, float]]
Scores = dict[str, float | None]


@dataclass(frozen=True)
class MethodResult:
    """The result of one method with one noise seed.

    `numbers` are scores and token match by name, None for those that do not apply. The images are those that the grids
    show, in [0, 1]; the tokens are those of all images, int32, if other methods need them.
    """

    numbers: Mapping[str, float | None]
    images_BIHW: Tensor
    tokens_NL: Tensor | None = None


@dataclass(frozen=True)
class PartialResults:
    """Saves and loads the partial results in a folder."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> PartialResults:
        """Resume the results in a folder if they have this identity, else delete them.

        Raises:
            Refused: the folder cannot be written to.
        """
        content = (json.dumps(identity, indent=2, sort_keys=True) + "\n").encode()
        file = folder / IDENTITY_FILE
        if not file.is_file() or read_bytes(file) != content:
            shutil.rmtree(folder, ignore_errors=True)
            commit_bytes(file, content)
        return cls(folder)

    def times(self, measure: Callable[[], Times]) -> Times:
        """The saved times; measures and saves them if there are none. Raises like `result`."""
        return self._json(TIMES_FILE, measure)

    def scores(self, row: str, measure: Callable[[], Scores]) -> Scores:
        """The saved scores of a row of real images; measures and saves them if there are none. Raises like `result`."""
        return self._json(f"{row}.json", measure)

    def moments(self, measure: Callable[[], Moments]) -> Moments:
        """The saved moments of the teacher's images; measures and saves them if there are none. Raises like `result`."""
        file = self.folder / MOMENTS_FILE
        if not file.is_file():
            moments, buffer = measure(), io.BytesIO()
            np.savez(buffer, mean_F=moments.mean_F, covariance_FF=moments.covariance_FF)
            commit_bytes(file, buffer.getvalue())
        with (
            self._refusing_damage(file),
            np.load(io.BytesIO(read_bytes(file)), allow_pickle=False) as stored,
        ):
            return Moments(stored["mean_F"], stored["covariance_FF"])

    def result(self, method: str, seed: int) -> MethodResult | None:
        """The saved result of a method and seed, None if there is none.

        Raises:
            Refused: its file is damaged.
        """
        file = self._file(method, seed)
        if not file.is_file():
            return None
        with self._refusing_damage(file), safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            numbers = json.loads((opened.metadata() or {})["numbers"])
            return MethodResult(numbers, tensors["images"], tensors.get("tokens"))

    def save(self, method: str, seed: int, result: MethodResult) -> None:
        """Save a result.

        Raises:
            Refused, Failed: as `commit_bytes`.
        """
        tensors = {"images": result.images_BIHW.contiguous()}
        if result.tokens_NL is not None:
            tensors["tokens"] = result.tokens_NL.contiguous()
        commit_bytes(self._file(method, seed), save(tensors, {"numbers": json.dumps(dict(result.numbers))}))

    def clear(self) -> None:
        """Delete all partial results."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()

    def _json(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = self.folder / name
        if not file.is_file():
            commit_bytes(file, json.dumps(measure()).encode())
        with self._refusing_damage(file):
            return dict(json.loads(read_bytes(file)))

    def _file(self, method: str, seed: int) -> Path:
        return self.folder / f"{method.replace('*', '-star')}-seed-{seed}.safetensors"

    @contextmanager
    def _refusing_damage(self, file: Path) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
            raise Refused(f"{file} is damaged: delete {self.folder} to start this evaluation again") from error
