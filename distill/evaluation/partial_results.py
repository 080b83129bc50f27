"""What an interrupted evaluation keeps: one committed file for each method and noise seed, until the whole is written.
Beside them the times, and the moments of the teacher's images.

An evaluation of 50,000 images takes hours. What is kept belongs to one identity, everything that the numbers depend on;
of another one it is thrown away.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class MethodResult:
    """What is known of one method with one noise seed.

    Attributes:
        numbers: scores and token match by name, None where one does not apply.
        images_BIHW: the first images, as many as are shown, in [0, 1].
        tokens_NL: the tokens of all images, int32, where other methods need them; else None.
    """

    numbers: Mapping[str, float | None]
    images_BIHW: Tensor
    tokens_NL: Tensor | None = None


@dataclass(frozen=True)
class PartialResults:
    """The finished pieces of an evaluation: in a folder, or in no place that outlives the process (None)."""

    folder: Path | None = None
    _here: dict[str, MethodResult] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> PartialResults:
        """Go on with what lies in a folder if it is of this identity, else begin there anew.

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
        """The times that were measured, or are measured now: once for an evaluation, however often it is interrupted."""
        if self.folder is None:
            return measure()
        file = self.folder / TIMES_FILE
        if not file.is_file():
            commit_bytes(file, json.dumps(measure()).encode())
        try:
            return dict(json.loads(read_bytes(file)))
        except ValueError as error:
            raise Refused(self._damaged(file)) from error

    def moments(self, measure: Callable[[], Moments]) -> Moments:
        """The moments of the teacher's images, as `times` has the times.

        Raises:
            Refused: their file is damaged.
        """
        if self.folder is None:
            return measure()
        file = self.folder / MOMENTS_FILE
        if not file.is_file():
            found, buffer = measure(), io.BytesIO()
            np.savez(buffer, mean_F=found.mean_F, covariance_FF=found.covariance_FF)
            commit_bytes(file, buffer.getvalue())
        try:
            with np.load(io.BytesIO(read_bytes(file)), allow_pickle=False) as stored:
                return Moments(stored["mean_F"], stored["covariance_FF"])
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise Refused(self._damaged(file)) from error

    def result(self, method: str, seed: int) -> MethodResult | None:
        """What is kept of a method and seed, None where it is not there yet.

        Raises:
            Refused: its file is damaged.
        """
        if self.folder is None:
            return self._here.get(_name(method, seed))
        file = self.folder / _name(method, seed)
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                numbers = json.loads((opened.metadata() or {})["numbers"])
            return MethodResult(numbers, tensors["images"], tensors.get("tokens"))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise Refused(self._damaged(file)) from error

    def keep(self, method: str, seed: int, result: MethodResult) -> None:
        """Keep what was found.

        Raises:
            Refused, Failed: as `commit_bytes`.
        """
        if self.folder is None:
            self._here[_name(method, seed)] = result
            return
        tensors = {"images": result.images_BIHW.contiguous()}
        if result.tokens_NL is not None:
            tensors["tokens"] = result.tokens_NL.contiguous()
        commit_bytes(
            self.folder / _name(method, seed), save(tensors, {"numbers": json.dumps(dict(result.numbers))})
        )

    def clear(self) -> None:
        """Throw everything away: the whole is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):
                self.folder.parent.rmdir()

    def _damaged(self, file: Path) -> str:
        return f"{file} is damaged: delete {self.folder} to begin this evaluation anew"


def _name(method: str, seed: int) -> str:
    return f"{method.replace('*', '-star')}-seed-{seed}.safetensors"
