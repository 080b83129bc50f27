"""Fixtures for tests of complete trainings: a preset, and processes that train together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distill.training.metrics import CLOCK_COLUMNS, read_metrics

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PAIRS = """
guidance_scale = 1.5
[pairs]
num_pairs = 96
pairs_per_shard = 32
batch_size = 16
seed = 3
solver_steps = 16
"""
TRAIN = {"batch_size": 24, "warmup_steps": 2, "embedding_weight": 0.1, "log_interval": 1}


@dataclass(frozen=True)
class Ended:
    """Exit codes of the processes of a training by rank, and the folder of their output and pairs."""

    codes: list[int]
    log: Path

    def output(self, rank: int) -> tuple[str, str]:
        """Standard output and standard error of a process."""
        return (self.log / f"{rank}.out").read_text(), (self.log / f"{rank}.err").read_text()

    def batches(self, batch_size: int) -> list[list[int]]:
        """Pairs of the global batches of this size, in the order of ranks."""
        lines = [(self.log / f"{rank}.pairs").read_text().splitlines() for rank in range(len(self.codes))]
        batches: list[list[int]] = []
        for shares in zip(*lines, strict=True):
            numbers = [[int(word) for word in share.split()] for share in shares]
            if numbers[0][0] == batch_size:
                batches.append([pair for _, *pairs in numbers for pair in pairs])
        return batches


@dataclass(frozen=True)
class Forked:
    """Runs `tokenleap` in processes that are forked from one that has loaded torch."""

    server: subprocess.Popen[str]
    folder: Path

    def __call__(self, processes: int, arguments: list[str], **more: Any) -> Ended:
        """Run a command in `processes` processes; `more` is described in forked_ranks.py."""
        log = self.folder / str(len(list(self.folder.iterdir())))
        log.mkdir()
        request = {"processes": processes, "arguments": arguments, "log": str(log), **more}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return Ended(json.loads(self.server.stdout.readline()), log)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of processes that can import this project's packages, without torchrun."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def forked(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "training" / "forked_ranks.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield Forked(server, tmp_path_factory.mktemp("forked"))
        server.stdin.close()


@pytest.fixture
def distilling(teacher_path: Path, pairs_root: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Function that returns the arguments of `tokenleap distill`, with changed settings of [train]."""

    def arguments(out: Path, *, pairs: Path = pairs_root, **settings: object) -> list[str]:
        train = "\n".join(f"{key} = {json.dumps(value)}" for key, value in (TRAIN | settings).items())
        preset = tmp_path / f"{out.name}.toml"
        preset.write_text(
            f'[teacher]\nname = "{teacher_path}"{PAIRS}[student]\ntimesteps = [0, 2]\nsplit = 3\n[train]\n{train}\n'
        )
        return ["distill", str(preset), "--pairs", str(pairs), "--out", str(out)]

    return arguments


@pytest.fixture(scope="session")
def left_behind() -> Callable[[Path], Mapping[str, object]]:
    """Function that returns everything that a kill must not change: export, newest checkpoint, metrics without times."""

    def read(out: Path) -> dict[str, object]:
        export = [out / name for name in ("student.safetensors", "tokenizer.safetensors", "config.json")]
        checkpoint = max((out / "checkpoints").glob("[!.]*.safetensors"))
        log = read_metrics(out / "metrics").drop_columns(list(CLOCK_COLUMNS))
        return {path.name: path.read_bytes() for path in (*export, checkpoint)} | {"log": log.to_pydict()}

    return read
