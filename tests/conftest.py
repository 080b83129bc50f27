"""Fixtures for the tests of several packages.

A small random teacher of each family and its pairs, small versions of published models, an S3 server, and the golden
cases, whose worst differences are printed at the end of the suite.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from distill.evaluation import timing
from generate_pairs.config import GenerateConfig
from generate_pairs.generation.generate import generate
from generate_pairs.teachers.checkpoints import save_teacher
from generate_pairs.teachers.registry import build_teacher, family_of

# Tests run in parallel, one process for each core: more threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs unless GPU tests are selected: all other tests give the same results on every machine."""
    markers = config.option.markexpr
    if "gpu" not in markers or "not gpu" in markers:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test that is quick and slow: `-m quick` would run it."""
    for item in items:
        if item.get_closest_marker("quick") and (item.get_closest_marker("slow") or item.get_closest_marker("gpu")):
            raise pytest.UsageError(f"{item.nodeid} is marked quick, and slow or gpu")


TOKENIZERS = {
    "llamagen": {
        "vocab_size": 24,
        "codebook_dim": 3,
        "l2_normalised": False,
        "z_channels": 32,
        "ch": 32,
        "ch_mult": (1, 1),
        "num_res_blocks": 1,
        "image_channels": 1,
        "image_size": 8,
    },
    "var": {
        "vocab_size": 24,
        "codebook_dim": 3,
        "ch": 32,
        "ch_mult": (1, 1),
        "num_res_blocks": 1,
        "scales": (1, 2, 4),
        "image_channels": 1,
        "image_size": 8,
    },
}
TRANSFORMERS = {
    "llamagen": {
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "vocab_size": 24,
        "num_tokens": 16,
        "num_classes": 10,
        "dropout": 0.1,
        "ffn_multiple_of": 32,
    },
    "var": {
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "vocab_size": 24,
        "codebook_dim": 3,
        "scales": (1, 2, 4),
        "num_classes": 10,
        "dropout": 0.1,
    },
}


BRIEF_TIMING = {"ROUNDS": 2, "SECONDS_A_TURN": 0.001}
"""Constants of `distill.evaluation.timing` for tests, which do not need exact times."""

GOLDEN_RATIOS = "worst difference over tolerance of golden cases"
"""Name of the report property with the golden cases that a test checked."""


def module_beside(name: str) -> ModuleType:
    """Import a module of this folder, which is not on the import path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def brief_timing() -> Iterator[None]:
    """Shorten the timing of methods by evaluations in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in BRIEF_TIMING.items():
            patch.setattr(timing, name, value)
        yield


@pytest.fixture(scope="session")
def brief_tokenleap() -> list[str]:
    """The command of `tokenleap` in a separate process, with short timing of methods by evaluations."""
    script = (
        f"from distill.evaluation import timing; vars(timing).update({BRIEF_TIMING}); "
        "from pipeline.cli.main import main; main()"
    )
    return [sys.executable, "-c", script]


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Loads a golden case (`golden_cases.Case`) by its name."""
    ratios: dict[str, float] = {}
    yield lambda name: module_beside("golden_cases").load_case(name, ratios)
    # Stored in the report, which xdist transfers from the process that ran the test.
    request.node.user_properties.append((GOLDEN_RATIOS, ratios))


@pytest.fixture(scope="session")
def golden_table() -> Callable[[str], Any]:
    """Reads a JSON file of the golden folder by its name."""
    return lambda name: module_beside("golden_cases").table(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the worst ratio of difference to tolerance of each golden case that was checked."""
    worst: dict[str, float] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for key, ratios in getattr(report, "user_properties", ()):
            for name, ratio in ratios.items() if key == GOLDEN_RATIOS else ():
                worst[name] = max(ratio, worst.get(name, 0.0))
    if worst:
        terminalreporter.section("golden cases, worst difference / tolerance")
    for name, ratio in sorted(worst.items()):
        terminalreporter.line(f"{name:<20} {ratio:.3f}")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["llamagen", "var"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def write_teacher(family: str, path: Path, seed: int = 0) -> Path:
    """Write a random teacher with well separated codebook rows and logits that are not flat."""
    torch.manual_seed(seed)
    teacher = build_teacher(family, TRANSFORMERS[family], TOKENIZERS[family])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        teacher.tokenizer.quantize.embedding.weight.normal_(generator=generator)
        for parameter in teacher.transformer.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.2, generator=generator)
    save_teacher(teacher, family, path, {"data": "none"}, torch.float32)
    return path


@pytest.fixture(scope="session")
def teacher_path(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(family, tmp_path_factory.mktemp("teacher") / f"{family}.safetensors")


@pytest.fixture(scope="session")
def text_models() -> ModuleType:
    """The module text_models.py of this folder; skips if transformers is not installed."""
    pytest.importorskip("transformers")
    return module_beside("text_models")


@pytest.fixture
def published_files() -> ModuleType:
    """The module published_files.py of this folder."""
    return module_beside("published_files")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for imported teachers."""
    monkeypatch.setenv("TOKENLEAP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def published(
    family: str, published_files: ModuleType, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Any:
    """A `published_files.Published`: both tables contain only a small teacher and its student."""
    from distill.student.published import STUDENTS
    from generate_pairs.teachers.published import TEACHERS

    parts = family_of(family)
    transformer = parts.transformer_config(**TRANSFORMERS[family])
    tokenizer = parts.tokenizer_config(**TOKENIZERS[family])
    real_teacher, real_student = published_files.REAL[family]
    name, student_name = f"small-{family}", f"small-{family}-dd"
    teacher = published_files.resized_teacher(real_teacher, transformer, tokenizer)
    monkeypatch.setitem(TEACHERS, name, teacher)
    student = published_files.resized_student(real_student, name, (0, 1), 1)
    monkeypatch.setitem(STUDENTS, student_name, student)
    for table, kept in ((TEACHERS, name), (STUDENTS, student_name)):
        # In reverse order, so that monkeypatch restores the original order.
        for other in [name for name in reversed(table) if name != kept]:
            monkeypatch.delitem(table, other)
    folder = tmp_path / "files"
    folder.mkdir()
    return published_files.Published(family, name, student_name, published_files.weights_of(name), folder)


def make_generate_config(teacher: Path, *, guidance_scale: float = 1.5, **pairs: object) -> GenerateConfig:
    settings = {
        "num_pairs": 96,
        "pairs_per_shard": 32,
        "batch_size": 16,
        "seed": 3,
        "solver_steps": 16,
    } | pairs
    return GenerateConfig.model_validate(
        {"teacher": {"name": str(teacher), "guidance_scale": guidance_scale}, "pairs": settings}
    )


@pytest.fixture(scope="session")
def generate_config() -> Callable[..., GenerateConfig]:
    """Makes settings for a teacher's file, by default 32 held-out and 96 training pairs in shards of 32."""
    return make_generate_config


@pytest.fixture(scope="session")
def pairs_root(
    teacher_path: Path,
    generate_config: Callable[..., GenerateConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    root = tmp_path_factory.mktemp("made") / "pairs"
    generate(generate_config(teacher_path), root, workers=0, report=lambda *_: None, should_stop=lambda: False)
    return root


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server in this process; this process and its children use it instead of Amazon's."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The URL of an empty bucket."""
    from s3fs import S3FileSystem

    name = f"bucket-{os.urandom(6).hex()}"
    S3FileSystem(use_listings_cache=False).mkdir(name)
    return f"s3://{name}"
