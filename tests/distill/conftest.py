"""What tests of whole trainings share: a preset, and the processes that train together."""

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
    """How the processes of a training ended, by rank; and the folder of what they said, of their pairs."""

    codes: list[int]
    log: Path

    def said(self, rank: int) -> tuple[str, str]:
        """Standard output and error of a process."""
        return (self.log / f"{rank}.out").read_text(), (self.log / f"{rank}.err").read_text()

    def batches(self, batch_size: int) -> list[list[int]]:
        """Pairs of the global batches of this size, all processes' in turn."""
        lines = [(self.log / f"{rank}.pairs").read_text().splitlines() for rank in range(len(self.codes))]
        batches: list[list[int]] = []
        for shares in zip(*lines, strict=True):
            words = [[int(word) for word in share.split()] for share in shares]
            if words[0][0] == batch_size:
                batches.append([pair for _, *pairs in words for pair in pairs])
        return batches


@dataclass(frozen=True)
class Forked:
    """Starts processes of `tokenleap`, forked from one that has loaded torch."""

    server: subprocess.Popen[str]
    folder: Path

    def __call__(self, processes: int, arguments: list[str], **more: Any) -> Ended:
        """Run a command in so many processes; `more` as in forked_ranks.py."""
        log = self.folder / str(len(list(self.folder.iterdir())))
        log.mkdir()
        asked = {"processes": processes, "arguments": arguments, "log": str(log), **more}
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        return Ended(json.loads(self.server.stdout.readline()), log)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of processes that find this project's packages, and no torchrun around them."""
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
    """Arguments of a distillation into a folder, with settings of [train] changed."""

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
    """All that a training leaves and that no kill may change: export, newest checkpoint, log without the clock's."""

    def found(out: Path) -> dict[str, object]:
        export = [out / name for name in ("student.safetensors", "tokenizer.safetensors", "config.json")]
        checkpoint = max((out / "checkpoints").glob("[!.]*.safetensors"))
        log = read_metrics(out / "metrics").drop_columns(list(CLOCK_COLUMNS))
        return {path.name: path.read_bytes() for path in (*export, checkpoint)} | {"log": log.to_pydict()}

    return found
