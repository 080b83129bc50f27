"""Compose a preset and overrides into one validated configuration, and write it as TOML."""

from __future__ import annotations

import datetime
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import Field, ValidationError

from distill.config import DistillConfig, EvaluationConfig, StudentConfig, TrainConfig
from generate_pairs.config import CaptionsConfig, ClusterConfig, GenerateConfig, PairsConfig, TeacherConfig
from pipeline.config.keys import describe_errors, is_list, leaves
from pipeline.config.nearest import nearest
from shards.core.errors import Refused
from shards.core.mismatch import flat
from shards.core.settings import FREE, Settings


class RunConfig(Settings):
    """The configuration of a whole run, one section for each part."""

    description: str = Field("", description="what this configuration is for", json_schema_extra=FREE)
    teacher: TeacherConfig
    captions: CaptionsConfig = CaptionsConfig()
    pairs: PairsConfig = PairsConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def generate(self) -> GenerateConfig:
        """The configuration of stage one."""
        return GenerateConfig(teacher=self.teacher, captions=self.captions, pairs=self.pairs, cluster=self.cluster)

    @property
    def distill(self) -> DistillConfig:
        """The configuration of stage two."""
        return DistillConfig(student=self.student, train=self.train)


def presets() -> dict[str, str]:
    """The shipped presets, as a mapping from name to TOML text."""
    folder = files("pipeline.config") / "presets"
    names = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return {name: (folder / f"{name}.toml").read_text("utf-8") for name in names}


def run_name(preset: str, *, tiny_random: bool = False) -> str:
    """The name of a run, derived from the preset's name or TOML file."""
    name = Path(preset).stem if preset.endswith(".toml") else preset
    return f"{name}-tiny-random" if tiny_random else name


def compose(preset: str, overrides: Sequence[str] = (), *, tiny_random: bool = False) -> RunConfig:
    """The configuration of a preset, a shipped one or a TOML file, with overrides `KEY=VALUE`; the last one wins.

    With `tiny_random`, the preset is first shrunk to a short trial; see `pipeline/config/tiny_random.py`.

    Raises:
        Refused: the preset or a key is unknown, a value has the wrong type or is out of range, the file is not
            TOML, or the preset has no trial.
    """
    settings = _read(preset)
    if tiny_random:
        validated(settings, f"preset {preset}")
        # Imported here because it loads torch.
        from pipeline.config.tiny_random import shrunk

        settings = shrunk(settings, preset)
    return compose_onto(settings, overrides, f"preset {preset}")


def compose_onto(settings: Mapping[str, Any], overrides: Sequence[str], origin: str = "--set") -> RunConfig:
    """The configuration of settings with overrides, as in `compose`.

    Raises:
        Refused: a key or value is invalid (the message names `origin` and every such key), or an override is not
            KEY=VALUE.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise Refused(f"cannot set {override!r}: write KEY=VALUE, as in pairs.num_pairs=1000")
        settings = _with(settings, key.strip().split("."), _as_list(key.strip(), parse_value(text.strip())))
    return validated(settings, origin)


def validated(settings: Mapping[str, Any], origin: str) -> RunConfig:
    """Validate settings as a configuration; `Refused` names `origin` and every invalid key with its type and range."""
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise Refused(f"{origin}: {describe_errors(error, RunConfig)}") from error


def changed(config: RunConfig, changes: Mapping[str, Any], origin: str) -> RunConfig:
    """A copy of a configuration with other values for some dotted keys; raises as `validated`."""
    settings = config.model_dump()
    for key, value in changes.items():
        settings = _with(settings, key.split("."), value)
    return validated(settings, origin)


def parse_value(text: str) -> Any:
    """Parse a value as TOML; `0,8` is a list, and a value that is not TOML is plain text."""
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            parsed = tomllib.loads(f"value = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
        # A duration such as 12:00:00 parses as a time of day, which no setting uses: keep it as text.
        if parsed.keys() == {"value"} and not isinstance(parsed["value"], datetime.time):
            return parsed["value"]
    return text


def as_text(value: str) -> str:
    """Text that `parse_value` reads as this value: quoted if it would otherwise be a number or a list."""
    return value if parse_value(value) == value else json.dumps(value, ensure_ascii=False)


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """Parse TOML text; `Refused` names `origin` and the line that is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{origin} is not TOML: {error}") from error


def to_toml(config: RunConfig) -> str:
    """The whole configuration as TOML, defaults included; keys with the value None are omitted."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def dry_run_toml(config: RunConfig) -> str:
    """The whole configuration as TOML, and a comment with the keys that have no value."""
    settings = flat(config.model_dump())
    unset = [key for key, value in settings.items() if value is None]
    return f"{to_toml(config)}\n# Not set: {', '.join(unset)}. `tokenleap settings` explains every key.\n"


def _as_list(key: str, value: Any) -> Any:
    """Wrap a single value in a list if the key holds a list, so that `student.timesteps=0` is accepted."""
    field = dict(leaves(RunConfig)).get(key)
    wants_list = field is not None and is_list(field.annotation)
    # Text is a single member only in a list of text. In a list of numbers it is an error, reported in full.
    single = (int, float, str) if field is not None and str in get_args(field.annotation) else (int, float)
    return [value] if wants_list and isinstance(value, single) else value


def _read(preset: str) -> dict[str, Any]:
    if preset.endswith(".toml"):
        try:
            text = Path(preset).read_text("utf-8")
        except FileNotFoundError as error:
            raise Refused(f"preset file {preset} does not exist") from error
        except OSError as error:
            raise Refused(f"cannot read the preset file {preset}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise Refused(f"{preset} is not TOML: it is not UTF-8 text") from error
        return parse_toml(text, preset)
    shipped = presets()
    if preset not in shipped:
        hint = nearest(preset, list(shipped))
        raise Refused(
            f"there is no preset {preset!r}; presets are {', '.join(shipped)}"
            + (f"; the nearest is {hint}" if hint else "")
            + ". Your own preset is a file that ends in .toml"
        )
    return parse_toml(shipped[preset], f"preset {preset}")


def _with(settings: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested settings with one value replaced."""
    if len(path) == 1:
        return {**settings, path[0]: value}
    inner = settings.get(path[0])
    return {**settings, path[0]: _with(inner if isinstance(inner, Mapping) else {}, path[1:], value)}
