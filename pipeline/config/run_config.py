"""From a preset and overrides to one validated configuration, and back to TOML."""

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
from pipeline.config.keys import describe_errors, is_list, leaves, nearest
from shards.core.errors import Refused
from shards.core.settings import FREE, Settings


class RunConfig(Settings):
    """Everything that a run is told: one section for each room that is set up."""

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
        """What stage one needs of it."""
        return GenerateConfig(
            teacher=self.teacher, captions=self.captions, pairs=self.pairs, cluster=self.cluster
        )

    @property
    def distill(self) -> DistillConfig:
        """What stage two needs of it."""
        return DistillConfig(student=self.student, train=self.train)


def presets() -> dict[str, str]:
    """The shipped presets: name to TOML text."""
    folder = files("pipeline.config") / "presets"
    names = sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )
    return {name: (folder / f"{name}.toml").read_text("utf-8") for name in names}


def run_name(preset: str, *, tiny_random: bool = False) -> str:
    """What a run is called after its preset, by its name or its TOML file's."""
    name = Path(preset).stem if preset.endswith(".toml") else preset
    return f"{name}-tiny-random" if tiny_random else name


def compose(preset: str, overrides: Sequence[str] = (), *, tiny_random: bool = False) -> RunConfig:
    """The configuration of a preset with overrides on top; of two overrides of a key the last wins.

    Args:
        preset: a shipped preset's name, or the path of a TOML file.
        overrides: `KEY=VALUE` with dotted keys; see `parse_value`.
        tiny_random: make the preset a trial of minutes first; see `pipeline/config/tiny_random.py`.

    Raises:
        Refused: no such preset or key, a value of the wrong type or out of range, a file that is no TOML, or a
            trial of a preset that has none.
    """
    settings = _read(preset)
    if tiny_random:
        validated(settings, f"preset {preset}")
        # Only now: it loads torch.
        from pipeline.config.tiny_random import shrunk

        settings = shrunk(settings, preset)
    return compose_onto(settings, overrides, f"preset {preset}")


def compose_onto(settings: Mapping[str, Any], overrides: Sequence[str], origin: str = "--set") -> RunConfig:
    """The configuration of settings with overrides on top, as `compose` does it.

    Raises:
        Refused: naming `origin`, and every key that is wrong; or what is no override.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise Refused(f"cannot set {override!r}: write KEY=VALUE, as in pairs.num_pairs=1000")
        settings = _with(settings, key.strip().split("."), _as_list(key.strip(), parse_value(text.strip())))
    return validated(settings, origin)


def validated(settings: Mapping[str, Any], origin: str) -> RunConfig:
    """Settings as a configuration.

    Raises:
        Refused: naming `origin`, and every key that is wrong with its type and range.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise Refused(f"{origin}: {describe_errors(error, RunConfig)}") from error


def changed(config: RunConfig, changes: Mapping[str, Any], origin: str) -> RunConfig:
    """A configuration with other values for some dotted keys.

    Raises:
        Refused: naming `origin`, and every key that cannot have its value.
    """
    settings = config.model_dump()
    for key, value in changes.items():
        settings = _with(settings, key.split("."), value)
    return validated(settings, origin)


def parse_value(text: str) -> Any:
    """A value as TOML writes it; `0,8` is a list, and what is no TOML is bare text."""
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            parsed = tomllib.loads(f"value = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
        # No setting is a time of day; a length of time, as in 12:00:00, looks like one.
        if parsed.keys() == {"value"} and not isinstance(parsed["value"], datetime.time):
            return parsed["value"]
    return text


def as_text(value: str) -> str:
    """What `parse_value` reads as this text: quoted where it would take it for a number or a list."""
    return value if parse_value(value) == value else json.dumps(value, ensure_ascii=False)


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """TOML text as nested mappings.

    Raises:
        Refused: it is no TOML; names `origin` and the line.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{origin} is not TOML: {error}") from error


def to_toml(config: RunConfig) -> str:
    """The whole configuration as TOML, defaults written out; a None (decided elsewhere) is left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _as_list(key: str, value: Any) -> Any:
    """A lone value in a list where the key holds a list, so that `student.timesteps=0` does what it says."""
    field = dict(leaves(RunConfig)).get(key)
    wants_list = field is not None and is_list(field.annotation)
    # Text is one member only where members are text: for a list of numbers it is a mistake, to be told whole.
    lone = (int, float, str) if field is not None and str in get_args(field.annotation) else (int, float)
    return [value] if wants_list and isinstance(value, lone) else value


def _read(preset: str) -> dict[str, Any]:
    if preset.endswith(".toml"):
        try:
            text = Path(preset).read_text("utf-8")
        except FileNotFoundError as error:
            raise Refused(f"there is no preset file {preset}") from error
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
            + ". A preset of your own is a file that ends in .toml"
        )
    return parse_toml(shipped[preset], f"preset {preset}")


def _with(settings: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested settings with one value replaced."""
    if len(path) == 1:
        return {**settings, path[0]: value}
    inner = settings.get(path[0])
    return {**settings, path[0]: _with(inner if isinstance(inner, Mapping) else {}, path[1:], value)}
