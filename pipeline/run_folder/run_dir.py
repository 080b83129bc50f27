"""A run's folder: founded by its first command, and kept from being continued with other settings."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from pipeline.config.keys import leaves
from pipeline.config.run_config import RunConfig, parse_toml, to_toml, validated
from pipeline.runtime.installation import version
from shards.core.errors import Refused
from shards.core.mismatch import flat
from shards.core.settings import FREE, UPWARD
from shards.storage.files import commit_bytes, read_bytes
from shards.storage.paths import Location, location

RECORDED_PACKAGES = (
    "torch",
    "numpy",
    "pyarrow",
    "webdataset",
    "safetensors",
    "dask",
    "pydantic",
    "scikit-learn",
)


@dataclass(frozen=True)
class RunDir:
    """Where everything of a run lies."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def pairs(self) -> Location:
        """The pair data set: the run's own, or the one elsewhere that it shares with other runs."""
        try:
            return location(self.external_pairs.read_text("utf-8").strip())
        except FileNotFoundError:
            return self.root / "pairs"

    @property
    def external_pairs(self) -> Path:
        """A file that holds the folder or URL of the pairs, where they are not the run's own."""
        return self.root / "pairs.location"

    @property
    def student(self) -> Path:
        return self.root / "student"

    @property
    def checkpoints(self) -> Path:
        return self.student / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.parquet"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def other_evaluations(self) -> list[Path]:
        """What was judged by other protocols than the run's own, so far."""
        return sorted(self.root.glob("evaluation-*.json"))

    @property
    def seconds(self) -> Path:
        return self.root / "seconds.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def read_config(self) -> RunConfig:
        """The configuration that the run was given last.

        Raises:
            Refused: the folder is no run.
        """
        if not self.config.is_file():
            raise Refused(
                f"{self.root} is not a run: it has no {self.config.name}. "
                f"`tokenleap run PRESET --out {self.root}` makes one"
            )
        origin = str(self.config)
        return validated(parse_toml(read_bytes(self.config).decode(), origin), origin)

    def read_json(self, path: Path) -> dict[str, Any]:
        """One of the run's JSON files, empty where it is not there yet.

        Raises:
            Refused: it is damaged; everything that is read here can be made again.
        """
        if not path.is_file():
            return {}
        try:
            content = json.loads(read_bytes(path))
        except ValueError as error:
            raise Refused(_damaged(path)) from error
        if not isinstance(content, dict):
            raise Refused(_damaged(path))
        return content


def check(out: Path, config: RunConfig) -> RunDir:
    """Whether a run may begin or go on in this folder; writes nothing.

    Raises:
        Refused: the folder holds another run, or something that is no run.
    """
    run_dir = RunDir(out)
    if run_dir.config.is_file():
        refused = forbidden_changes(run_dir.read_config(), config)
        if refused:
            raise Refused(
                f"{out} holds a run with other settings: {'; '.join(refused)}. "
                "Give the original values to go on with it, or another --out to begin a new one"
            )
    elif out.is_dir() and (strange := sorted(entry.name for entry in out.iterdir() if _is_strange(entry))):
        raise Refused(
            f"{out} is not a run (it has no {run_dir.config.name}) and holds {', '.join(strange[:3])}: "
            "give another --out"
        )
    return run_dir


def claim(out: Path, config: RunConfig) -> RunDir:
    """Begin a run in a folder or go on with it: config.toml and environment.json are written.

    Raises:
        Refused: as `check`, or the folder cannot be written to.
    """
    run_dir = check(out, config)
    content = to_toml(config).encode()
    if not commit_bytes(run_dir.config, content, exclusive=True):
        # A run is there, and may have begun since the check: who was first, those settings stand.
        check(out, config)
        if read_bytes(run_dir.config) != content:
            commit_bytes(run_dir.config, content)
    if not run_dir.environment.is_file():
        commit_bytes(run_dir.environment, (json.dumps(environment(), indent=2) + "\n").encode())
    return run_dir


def forbidden_changes(there: RunConfig, asked: RunConfig) -> list[str]:
    """The keys that a resumed run may not change and that differ, each as `key: there X, asked Y`."""
    marks = {key: field.json_schema_extra for key, field in leaves(RunConfig)}
    before, after = flat(there.model_dump()), flat(asked.model_dump())
    return [
        f"{key}: there {_shown(before[key])}, asked {_shown(after[key])}"
        + (" (it may only grow)" if mark == UPWARD else "")
        for key, mark in marks.items()
        if before[key] != after[key] and mark != FREE and not (mark == UPWARD and after[key] > before[key])
    ]


def environment() -> dict[str, Any]:
    """What a result may depend on besides its settings: versions, machine, threads."""
    return {
        "tokenleap": version(),
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
    }


def _damaged(path: Path) -> str:
    return f"{path} is damaged: delete it and give the same command again"


def _is_strange(entry: Path) -> bool:
    """Whether this marks a folder as no run; pairs made beforehand and what a killed writer left are fine."""
    return entry.name not in {"pairs", "pairs.location"} and not entry.name.startswith(".")


def _versions() -> Mapping[str, str]:
    found = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = installed_version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    """The processor's name; only Linux tells it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _shown(value: Any) -> str:
    return (
        "the default"
        if value is None
        else ",".join(map(str, value))
        if isinstance(value, tuple)
        else str(value)
    )
