"""A run's folder: its paths, and the check that a run continues only with the settings it started with."""

from __future__ import annotations

import json
import os
import platform
import socket
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from pipeline.config.keys import leaves
from pipeline.config.run_config import RunConfig, parse_toml, to_toml, validated
from pipeline.runtime.installation import version
from shards.core.errors import Refused, join_first
from shards.core.mismatch import format_mismatch, mismatches
from shards.core.settings import FREE, UPWARD
from shards.storage.files import commit_bytes, read_bytes
from shards.storage.paths import Location, location

RECORDED_PACKAGES = ("torch", "numpy", "pyarrow", "webdataset", "safetensors", "dask", "pydantic", "scikit-learn")


class RunDir:
    """The paths in a run's folder.

    `external_pairs` is a file with the folder or URL of the pairs; it exists only if the run has no pairs of its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.environment = root / "environment.json"
        self.external_pairs = root / "pairs.location"
        self.student = root / "student"
        self.checkpoints = self.student / "checkpoints"
        self.samples = root / "samples"
        self.metrics = root / "metrics.parquet"
        self.evaluation = root / "evaluation.json"
        self.seconds = root / "seconds.json"
        self.report = root / "report.html"

    @property
    def pairs(self) -> Location:
        """The pair data set: the run's own, or an external one that several runs share."""
        try:
            return location(self.external_pairs.read_text("utf-8").strip())
        except FileNotFoundError:
            return self.root / "pairs"

    @property
    def other_evaluations(self) -> list[Path]:
        """The evaluations by protocols other than the run's own."""
        return sorted(self.root.glob("evaluation-*.json"))

    def read_config(self) -> RunConfig:
        """The configuration of the run's latest command.

        Raises:
            Refused: the folder is not a run.
        """
        if not self.config.is_file():
            raise Refused(
                f"{self.root} is not a run: it has no {self.config.name}. "
                f"`tokenleap run PRESET --out {self.root}` starts one"
            )
        origin = str(self.config)
        return validated(parse_toml(read_bytes(self.config).decode(), origin), origin)

    def read_json(self, path: Path) -> dict[str, Any]:
        """One of the run's JSON files; empty if it does not exist yet.

        Raises:
            Refused: the file is damaged. Deleting it is safe, because a command can write each of these files again.
        """
        if not path.is_file():
            return {}
        content = None
        with suppress(ValueError):
            content = json.loads(read_bytes(path))
        if not isinstance(content, dict):
            raise Refused(f"{path} is damaged: delete it and run the same command again")
        return content


def check(out: Path, config: RunConfig) -> RunDir:
    """Check that a run may start or continue in this folder; writes nothing.

    Raises:
        Refused: the folder contains another run, or other files without a run.
    """
    run_dir = RunDir(out)
    if run_dir.config.is_file():
        changes = forbidden_changes(run_dir.read_config(), config)
        if changes:
            raise Refused(
                f"{out} contains a run with other settings: {join_first(changes)}. "
                "Give the stored values to continue it, or another --out to start a new run"
            )
    elif out.is_dir() and (foreign := sorted(entry.name for entry in out.iterdir() if _is_foreign(entry))):
        raise Refused(
            f"{out} is not a run (it has no {run_dir.config.name}) and contains {', '.join(foreign[:3])}: "
            "give another --out"
        )
    return run_dir


def claim(out: Path, config: RunConfig) -> RunDir:
    """Start or continue a run in a folder: write config.toml and environment.json.

    Raises:
        Refused: as `check`, or the folder cannot be written to.
    """
    run_dir = check(out, config)
    content = to_toml(config).encode()
    if not commit_bytes(run_dir.config, content, exclusive=True):
        # Another process may have started a run here since the check; the settings written first are valid.
        check(out, config)
        if read_bytes(run_dir.config) != content:
            commit_bytes(run_dir.config, content)
    if not run_dir.environment.is_file():
        commit_bytes(run_dir.environment, (json.dumps(environment(), indent=2) + "\n").encode())
    return run_dir


def forbidden_changes(stored: RunConfig, requested: RunConfig) -> list[str]:
    """The keys that differ although a resumed run may not change them, each as `KEY: found X, requested Y`."""
    marks = {key: field.json_schema_extra for key, field in leaves(RunConfig)}
    lines = []
    for mismatch in mismatches(stored.model_dump(), requested.model_dump()):
        only_grows = marks[mismatch.key] == UPWARD
        if marks[mismatch.key] == FREE or (only_grows and mismatch.requested > mismatch.found):
            continue
        lines.append(format_mismatch(mismatch) + (" (it may only grow)" if only_grows else ""))
    return lines


def environment() -> dict[str, Any]:
    """What a result may depend on in addition to its settings: versions, machine and processor."""
    packages = {}
    for name in RECORDED_PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = installed_version(name)
    return {
        "tokenleap": version(),
        "python": platform.python_version(),
        "packages": packages,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
    }


def _is_foreign(entry: Path) -> bool:
    """Whether this entry belongs to no run. Existing pairs and hidden files of a killed writer are allowed."""
    return entry.name not in {"pairs", "pairs.location"} and not entry.name.startswith(".")


def _cpu_name() -> str:
    """The processor's name, from /proc/cpuinfo on Linux."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
