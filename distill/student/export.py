"""The files of an exported student: config.json, student.safetensors and tokenizer.safetensors."""

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

from distill.config import NoiseWeight, noise_weight_error
from generate_pairs.teachers.importing.hub import HUB, hub_folder
from shards.core.errors import Refused
from shards.storage.files import read_bytes, sha256_bytes

SCHEMA_VERSION = 2
CONFIG_FILE = "config.json"
EXPORT_FILES = (CONFIG_FILE, "student.safetensors", "tokenizer.safetensors")


class ExportConfig(BaseModel):
    """The content of config.json; `fingerprint`, `num_pairs` and `lineage` are those of the training pairs.

    All three are None for published students. `lineage` is what the data set records: teacher, sampling settings, flow
    map; it is also None for exports written before this field existed.
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
        if error := noise_weight_error(self.noise_weight, self.timesteps):
            raise ValueError(f"noise_weight has {error}")
        return self

    def to_bytes(self) -> bytes:
        """The bytes of config.json, with sorted keys: equal exports have equal bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()


def export_folder(source: Path | str, files: Sequence[str] = EXPORT_FILES) -> Path:
    """The local folder of an export; downloads `files` of `hf://OWNER/REPOSITORY[@REVISION]`.

    Raises:
        Refused: The Hub client is not installed, or the repository name is malformed.
        Failed: The download failed.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return hub_folder(source, files)
    return Path(source)


def refuse_missing_export(folder: Path) -> None:
    """Check that a folder contains an export.

    Raises:
        Refused: It does not; for the folder of a run, the message names the export inside it.
    """
    if (folder / CONFIG_FILE).is_file():
        return
    inside = folder / "student"
    hint = f"did you mean {inside}?" if (inside / CONFIG_FILE).is_file() else "`tokenleap distill` writes one"
    raise Refused(f"{folder} contains no student ({CONFIG_FILE} is missing); {hint}")


def read_export_config(folder: Path) -> ExportConfig:
    """Read config.json of an export.

    Raises:
        Refused: The folder is not an export, or config.json is damaged or has another schema version.
    """
    refuse_missing_export(folder)
    path = folder / CONFIG_FILE
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise Refused(f"{path} is damaged, it is not JSON: {_advice(folder)}") from error
    version = content.get("schema_version") if isinstance(content, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise Refused(f"{path} has schema_version {version}, this version reads {SCHEMA_VERSION}")
    try:
        return ExportConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise Refused(f"{path} is damaged ({key}: {first['msg']}): {_advice(folder)}") from error


@contextmanager
def refuse_invalid_architecture(folder: Path) -> Iterator[None]:
    """Turn errors of building the networks in config.json into a refusal that names the file."""
    try:
        yield
    except Refused as error:
        raise Refused(f"{folder / CONFIG_FILE} needs something that is not installed: {error}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise Refused(
            f"{folder / CONFIG_FILE} is damaged, it describes no network ({error}): {_advice(folder)}"
        ) from error


def read_tensors(folder: Path, stem: str, sha256: str) -> tuple[dict[str, Tensor], Path]:
    """Read one of an export's safetensors files; returns the tensors and the path.

    Raises:
        Refused: The file is missing, damaged, or not the one that config.json records.
    """
    path = folder / f"{stem}.safetensors"
    if not path.is_file():
        raise Refused(f"{path} is missing: an export consists of {', '.join(EXPORT_FILES)}")
    content = read_bytes(path)
    if sha256_bytes(content) != sha256:
        raise Refused(f"{path} does not have the sha256 in {CONFIG_FILE}: {_advice(folder)}")
    try:
        return load(content), path
    except SafetensorError as error:
        raise Refused(f"{path} is damaged ({error}): {_advice(folder)}") from error


def _advice(folder: Path) -> str:
    return f"run the same `tokenleap distill ... --out {folder}` again to export from its last checkpoint"
