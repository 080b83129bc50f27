"""A student's folder on disk: config.json beside student.safetensors and tokenizer.safetensors, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from distill.config import NoiseWeight, misfit
from generate_pairs.teachers.importing.hub import HUB, hub_folder
from shards.core.errors import Refused
from shards.storage.files import read_bytes, sha256_bytes

SCHEMA_VERSION = 2
CONFIG_FILE = "config.json"
EXPORT_FILES = (CONFIG_FILE, "student.safetensors", "tokenizer.safetensors")


class ExportConfig(BaseModel):
    """What config.json holds.

    Attributes:
        network: the student's architecture.
        tokenizer: the tokenizer's.
        noise_weight: of a position's own noise in the choice of its token, one for all passes or one for each of
            `timesteps`; see `Student.chosen`.
        fingerprint: of the pairs that the student learned from; None where they are not known, as of published ones.
        num_pairs: how many of them, the first training pairs; None where they are not known.
        lineage: of those pairs, as their data set records it: the teacher and its settings, the flow map. None where it
            is not known, as of published students and of those that were exported before there was this field.
        student_sha256: of student.safetensors; `tokenizer_sha256` of tokenizer.safetensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    family: str
    network: dict[str, Any]
    tokenizer: dict[str, Any]
    tokens_per_step: tuple[int, ...] = Field(min_length=1)
    timesteps: tuple[int, ...] = Field(min_length=1)
    split: int = Field(ge=0)
    noise_weight: NoiseWeight = 0.0
    fingerprint: str | None
    num_pairs: int | None = Field(gt=0)
    lineage: dict[str, Any] | None = None
    student_sha256: str
    tokenizer_sha256: str

    @model_validator(mode="after")
    def _one_weight_a_timestep(self) -> Self:
        if wrong := misfit(self.noise_weight, self.timesteps):
            raise ValueError(f"noise_weight holds {wrong}")
        return self

    def to_bytes(self) -> bytes:
        """The content of config.json: sorted, so that the same export is the same bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()


def export_folder(source: Path | str, files: Sequence[str] = EXPORT_FILES) -> Path:
    """The folder of a student: the one that is named, or `hf://OWNER/REPOSITORY[@REVISION]` brought here.

    Args:
        source: folder or repository.
        files: of the repository, which to bring.

    Raises:
        Refused: the Hub's client is not installed, or the name has another form.
        Failed: the download failed.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return hub_folder(source, files)
    return Path(source)


def read_export_config(folder: Path) -> ExportConfig:
    """The configuration in a student's folder.

    Raises:
        Refused: the folder is no export, or config.json is damaged or of another schema.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise Refused(
            f"{folder} is no student: there is no {path.name}; a student's folder is made by distill"
        )
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise Refused(f"{path} is damaged, it is not JSON: {_way_out(folder)}") from error
    version = content.get("schema_version") if isinstance(content, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise Refused(f"{path} has schema_version {version}, this version reads {SCHEMA_VERSION}")
    try:
        return ExportConfig.model_validate(content)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        key = ".".join(map(str, wrong["loc"])) or "the file"
        raise Refused(f"{path} is damaged ({key}: {wrong['msg']}): {_way_out(folder)}") from error


@contextmanager
def refusing_misfits(folder: Path) -> Iterator[None]:
    """Refuse, by the file's name, architectures in config.json that cannot be built."""
    try:
        yield
    except Refused as error:
        raise Refused(f"{folder / CONFIG_FILE} names what is not here: {error}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise Refused(
            f"{folder / CONFIG_FILE} is damaged, it describes no network ({error}): {_way_out(folder)}"
        ) from error


def read_tensors(folder: Path, stem: str, sha256: str) -> tuple[dict[str, Tensor], Path]:
    """One of an export's two safetensors files, and its path.

    Raises:
        Refused: it is missing, damaged, or not the file that config.json was written with.
    """
    path = folder / f"{stem}.safetensors"
    if not path.is_file():
        raise Refused(
            f"{path} is missing: an export is student.safetensors, tokenizer.safetensors, config.json"
        )
    content = read_bytes(path)
    if sha256_bytes(content) != sha256:
        raise Refused(f"{path} is not the file that config.json was written with: {_way_out(folder)}")
    try:
        return load(content), path
    except SafetensorError as error:
        raise Refused(f"{path} is damaged ({error}): {_way_out(folder)}") from error


def _way_out(folder: Path) -> str:
    return (
        f"run the same `tokenleap distill ... --out {folder}` again, which exports from its last checkpoint"
    )


def refuse_missing_export(folder: Path) -> None:
    """Stops before a folder without a student is loaded.

    Raises:
        Refused: no export there; a run's folder is told apart.
    """
    from shards.core.errors import Refused

    if (folder / "config.json").is_file():
        return
    inside = folder / "student"
    hint = (
        f"did you mean {inside}?" if (inside / "config.json").is_file() else "`tokenleap distill` writes one"
    )
    raise Refused(f"{folder} holds no student (no config.json); {hint}")
