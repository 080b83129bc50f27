"""The command line, a small pair data set, and fakes of the lower packages."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
from click.testing import CliRunner, Result

from pipeline.cli.main import main
from shards import Pairs, PairSpec, commit_shard, create_dataset, gaussian_noise
from shards.core.errors import Refused, Stopped
from shards.dataset.manifest import refuse_other_spec

REPOSITORY = Path(__file__).parents[2]
LENGTH, DIM = 16, 2
ROW_FACTS = {"seconds": 0.5, "host": "here", "device": "cpu", "batch_size": 5, "versions": "none"}


SPEC = PairSpec(
    lineage={"teacher": {"name": "digits", "family": "llamagen", "guidance_scale": 1.5}},
    tokens_per_step=(1,) * LENGTH,
    vocab_size=16,
    codebook_dim=DIM,
    num_classes=10,
    num_heldout=20,
    pairs_per_shard=20,
    seed=0,
    noise="stored",
)


def _write_pairs(root: Path, num_shards: int) -> None:
    create_dataset(root, SPEC)
    for shard in range(num_shards):
        index = np.arange(shard * 20, shard * 20 + 20, dtype=np.int64)
        noise = gaussian_noise(0, shard * 20, 20, (LENGTH, DIM))
        tokens = np.full((20, LENGTH), 3, dtype=SPEC.token_dtype)
        commit_shard(root, SPEC, shard, Pairs(index, noise, tokens, index % 10), ROW_FACTS)


@pytest.fixture
def tokenleap() -> Callable[..., Result]:
    """Call the command line in this process; it must end with the exit code `code`."""

    def call(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return call


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in another process until it ends."""

    def call(*arguments: object, folder: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, *map(str, arguments)]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.run(words, cwd=folder, env=_environment(), text=True, check=False, **output)

    return call


@pytest.fixture(scope="session")
def run_and_kill() -> Callable[..., None]:
    """Start a command in its own process group, and kill the group `delay` seconds after `moment` returns True."""

    def call(command: Iterable[object], log: Path, moment: Callable[[], bool], delay: float = 0.0) -> None:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                env=_environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + 120
            while not moment():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.005)
            time.sleep(delay)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL, log.read_text()

    return call


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A complete data set of 20 held-out and 40 training pairs."""
    root = tmp_path / "pairs"
    _write_pairs(root, 3)
    return root


@dataclass
class Stages:
    """Fakes of both stages and the evaluation: they write the files of the real ones and record their calls."""

    calls: list[str] = field(default_factory=list)
    stop_in: str = ""
    pairs_done: int = 0
    steps_done: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    replaced: tuple[Any, ...] = ()
    requested: PairSpec = SPEC

    def plan_generation(self, config: Any, root: Path) -> Any:
        missing = () if (root / "dataset.json").exists() else (0, 1, 2)
        steps = (1, 4, 16) if config.teacher.name == "digits-var" else SPEC.tokens_per_step
        spec = replace(SPEC, tokens_per_step=steps, num_heldout=config.pairs.heldout)
        teacher = SimpleNamespace(tokenizer=SimpleNamespace(image_shape=(1, 8, 8)))
        return SimpleNamespace(
            spec=spec,
            missing=missing,
            captions=None,
            loaded=SimpleNamespace(name=config.teacher.name, teacher=teacher),
            lines=lambda: [f"{len(missing)} shards to make"],
        )

    def generate(self, config: Any, root: Path, *, workers: int, report: Any, **more: Any) -> Any:
        self._enter("generate", workers=workers)
        _write_pairs(root, 3)
        report(60, 60, "")
        return SimpleNamespace(num_shards=3, num_pairs=60, seconds=2.0, pairs_per_second=30.0)

    def repair(self, root: Path, teacher: str | None, *, findings: Any, workers: int, **more: Any) -> Any:
        kinds = [finding.kind for finding in findings]
        self._enter("repair", workers=workers, root=root, teacher=teacher, findings=kinds)
        return SimpleNamespace(num_shards=2, replaced=self.replaced)

    def extend(self, root: Path, num_pairs: int, teacher: str | None, *, workers: int, **more: Any) -> Any:
        self._enter("extend", workers=workers, root=root, num_pairs=num_pairs, teacher=teacher)
        return SimpleNamespace(num_shards=0, num_pairs=0, pairs_per_second=0.0)

    def refuse_fewer_pairs(self, config: Any, root: Path) -> None:
        if config.pairs.num_pairs < self.pairs_done:
            raise Refused(f"{root} already holds {self.pairs_done} training pairs")

    def refuse_other_pairs(self, config: Any, loaded: Any, root: Path) -> None:
        refuse_other_spec(root, self.requested)

    def refuse_training(self, config: Any, pairs: Path, out: Path, size: int | None) -> None:
        if config.train.num_steps < self.steps_done:
            raise Refused(f"there are {self.steps_done} steps in {out}")

    def train(self, config: Any, teacher: Any, pairs: Path, out: Path, *, size: Any, report: Any, **more: Any) -> Any:
        self._enter("train", size=size, teacher=getattr(teacher, "name", teacher))
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps({"student_sha256": f"weights-{config.train.num_steps}"}))
        report(config.train.num_steps, config.train.num_steps, "")
        metrics = {"loss": 0.25, "heldout_token_loss": 2.5, "train_token_loss": 2.25}
        steps = config.train.num_steps
        return SimpleNamespace(num_steps=steps, num_new_steps=3, seconds=1.0, metrics=metrics, is_main=True)

    def evaluate(
        self, student: Path, teacher: Any, pairs: Path, out: Path, config: Any, *, name: str, **more: Any
    ) -> None:
        self._enter("evaluate", teacher=teacher, config=config, file=name)
        evaluation = {
            "schema_version": 1,
            "student_sha256": json.loads((student / "config.json").read_text())["student_sha256"],
            **config.result_settings,
            "device": config.device,
            "teacher_images": 20_000,
            "rows": EVALUATION_ROWS,
        }
        (out / name).write_text(json.dumps(evaluation))

    def join_metrics(self, folder: Path, joined: Path) -> None:
        self._enter("join_metrics")

    def _enter(self, name: str, **arguments: Any) -> None:
        self.calls.append(name)
        self.arguments[name] = arguments
        if self.stop_in == name:
            raise Stopped("12 of 20 steps are done and kept")


EVALUATION_ROWS = [
    {
        "method": "teacher",
        "num_steps": 16,
        "num_parameters": 1_000_000,
        "frechet_distance": 1.25,
        "frechet_distance_std": 0.05,
        "teacher_distance": 0.0125,
        "inception_score": 8.5,
        "precision": 0.9,
        "recall": 0.8,
        "class_accuracy": 0.98,
        "token_match": None,
        "seconds_per_image": {"1": 0.08, "64": 0.004},
        "decode_seconds_per_image": {"1": 0.001, "64": 0.0005},
    },
    {
        "method": "student-1",
        "num_steps": 1,
        "num_parameters": 1_100_000,
        "frechet_distance": 3.5,
        "frechet_distance_std": None,
        "inception_score": 8.1,
        "precision": 0.85,
        "recall": 0.75,
        "class_accuracy": 0.95,
        "token_match": 0.6,
        "seconds_per_image": {"1": 0.008, "64": 0.001},
        "decode_seconds_per_image": {"1": 0.001, "64": 0.0005},
    },
]


@pytest.fixture
def fake_module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace a module by one with the given contents until the test ends."""

    def replace_module(name: str, **contents: Any) -> None:
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    return replace_module


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, fake_module: Callable[..., None]) -> Iterator[Stages]:
    """Fakes of the lower packages; no test with them imports torch."""
    made = Stages()
    fake_module(
        "generate_pairs.generation.plan",
        plan_generation=made.plan_generation,
        refuse_fewer_pairs=made.refuse_fewer_pairs,
        refuse_other_pairs=made.refuse_other_pairs,
        GenerationPlan=SimpleNamespace,
    )
    fake_module("generate_pairs.generation.generate", generate=made.generate)
    fake_module("generate_pairs.generation.repair", repair=made.repair, extend=made.extend)
    monkeypatch.setattr("generate_pairs.teachers.checkpoints.load_teacher", lambda name: name)
    monkeypatch.setattr("distill.training.preflight.refuse_training", made.refuse_training)
    monkeypatch.setattr(
        "distill.training.preflight.training_plan",
        lambda config, size, loaded=None: [f"{config.train.num_steps} steps on {size} pairs"],
    )
    fake_module("distill.training.trainer", train=made.train)
    monkeypatch.setattr("shards.storage.files.refuse_unwritable", lambda folder: None)
    gap = import_module("distill.training.metrics").overfitting_gap
    fake_module("distill.training.metrics", join_metrics=made.join_metrics, overfitting_gap=gap)
    fake_module("distill.evaluation.evaluate", evaluate=made.evaluate, EVALUATION_FILE="evaluation.json")
    # Import it again, because it binds the functions of the stages at import.
    monkeypatch.delitem(sys.modules, "pipeline.run", raising=False)
    yield made
    sys.modules.pop("pipeline.run", None)


class Page(HTMLParser):
    """The HTML of a page, its tags with their attributes, table cells, sources of images, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)
        self.images = [attributes["src"] for tag, attributes in self.tags if tag == "img"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1][0] == "td" and data.strip():
            self.cells.append(data.strip())


@pytest.fixture
def parse_page() -> type[Page]:
    return Page


@pytest.fixture
def ablation_table() -> Callable[..., pyarrow.Table]:
    """Create the long table of an ablation with numbers from a formula."""
    return _ablation_table


def _ablation_table(
    sizes: Iterable[int] = (2500, 5000, 10000, 20000),
    seeds: int = 2,
    timesteps: Iterable[str] = ("0,4", "0,8"),
    swept: Mapping[str, Iterable[str]] | None = None,
    methods: Iterable[str] = ("student-1", "student-2"),
) -> pyarrow.Table:
    """Three evaluations of every cell; the seed changes a value a little, the number of pairs more."""
    rows = []
    swept = swept or {}
    grid = itertools.product(sizes, range(seeds), timesteps, *swept.values())
    for number, (size, seed, steps, *values) in enumerate(grid):
        for step in (100, 200, 300):
            base = 1 + 1000 / size + 10 / step + 0.01 * seed + (0.1 if steps == "0,4" else 0)
            cell = {"cell": f"cell-{number}", "size": size, "seed": seed, "timesteps": steps, "step": step}
            cell |= {"epoch": step * 100 / size, "pairs_seen": step * 100, **dict(zip(swept, values, strict=True))}
            found: list[tuple[str | None, str, float, str]] = [
                (None, "heldout_token_loss", base, "1000 held-out pairs"),
                (None, "heldout_token_match", 1 / base, "1000 held-out pairs"),
                (None, "train_token_loss", base - 500 / size, "1000 training pairs"),
                (None, "train_token_match", 1 / base, "1000 training pairs"),
            ]
            for method in methods:
                of_images = "digits, 2000 images, seed 0"
                found += [(method, "frechet_distance", base / 10, of_images), (method, "recall", 0.5 / base, of_images)]
            rows += [
                {**cell, "method": method, "metric": metric, "value": value, "protocol": protocol}
                for method, metric, value, protocol in found
            ]
    return pyarrow.Table.from_pylist(rows)
