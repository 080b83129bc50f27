"""The example family of docs/how-to/own-teacher.md: packaged, installed and run as that page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.student.sampler import sample_images
from distill.student.student import Student
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from generate_pairs.trajectory import generate_tokens
from pipeline.config.run_config import compose
from pipeline.run import run
from shards.core.errors import Refused
from shards.dataset.manifest import Manifest
from shards.dataset.verify import verify

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "own-teacher.md"
BLOCK = re.compile(r"^\*\*(?P<name>[\w.]+)\*\*(?:(?!^\*\*).)*?^```\w*\n(?P<text>.*?)^```$", re.M | re.S)
SMALL = {
    "pairs.num_pairs": 48,
    "pairs.pairs_per_shard": 16,
    "pairs.batch_size": 16,
    "pairs.solver_steps": 16,
    # Both heads generate tokens: the token head the first half, the continuous head the second.
    "student.split": 8,
    "train.embedding_weight": 1,
    "train.num_steps": 6,
    "train.batch_size": 16,
    "train.warmup_steps": 2,
    "train.threads": 2,
    "evaluation.num_images": 100,
}


def documented() -> dict[str, str]:
    """The code blocks of the page by the bold name before each."""
    return {block["name"]: block["text"] for block in BLOCK.finditer(PAGE.read_text("utf-8"))}


@dataclass(frozen=True)
class Place:
    """The folders of the package's source, of its installation, and of its use."""

    source: Path
    site: Path
    folder: Path
    tokenleap: list[str]

    @property
    def teacher(self) -> Path:
        return self.folder / "mine.safetensors"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "mine"

    def follow(self, command: str) -> None:
        """Run one of the page's commands; pip installs without a network, and runs are small."""
        arguments, folder = command.split(), self.folder
        more: list[str] = []
        environment = os.environ | {"PYTHONPATH": str(self.site), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        match arguments[0]:
            case "pip":
                arguments, folder = [sys.executable, "-m", *arguments], self.source
                more = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(self.site)]
            case "python":
                arguments = [sys.executable, *arguments[1:]]
            case "tokenleap":
                arguments = [*self.tokenleap, *arguments[1:]]
                if "run" in arguments:
                    settings = [("--set", f"{key}={value}") for key, value in SMALL.items()]
                    more = ["--workers", "0", *(argument for pair in settings for argument in pair)]
            case other:
                raise AssertionError(f"{PAGE.name} contains a command that this test does not support: {other}")
        process = subprocess.run([*arguments, *more], cwd=folder, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, f"{command}: {process.stderr}"


@pytest.fixture(scope="module")
def place(brief_tokenleap: list[str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The folders after every command of the page was run."""
    place = Place(*(tmp_path_factory.mktemp(name) for name in ("source", "site", "folder")), brief_tokenleap)
    blocks = documented()
    for folder, names in (
        (place.source, ("grid_gru.py", "pyproject.toml")),
        (place.folder, ("write_teacher.py", "mine.toml")),
    ):
        for name in names:
            (folder / name).write_text(blocks[name], "utf-8")
    for command in blocks["commands"].splitlines():
        place.follow(command)
    return place


@pytest.fixture
def module(place: Place, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The installed module; its entry points are available during a test."""
    monkeypatch.syspath_prepend(str(place.site))
    module = import_module("grid_gru")
    assert Path(str(module.__file__)).parent == place.site
    return module


@pytest.fixture
def loaded(place: Place, module: ModuleType) -> LoadedTeacher:
    return load_teacher(str(place.teacher))


def sequences(num_classes: int) -> tuple[Tensor, Tensor]:
    """Labels (B,) and tokens (B, L) to force."""
    generator = torch.Generator().manual_seed(1)
    return torch.arange(num_classes), torch.randint(32, (num_classes, 16), generator=generator)


def test_the_example_is_short() -> None:
    lines = [line for line in documented()["grid_gru.py"].splitlines() if line.strip()]
    assert len(lines) < 80


def test_both_stages_run_and_write_all_files(place: Place) -> None:
    for name in ("evaluation.json", "report.html", "student/config.json", "samples/comparison.png"):
        assert (place.run / name).is_file(), name
    assert (place.folder / "grid.png").is_file()


def test_the_pairs_record_the_family_and_verify(place: Place) -> None:
    pairs = place.run / "pairs"
    spec = Manifest.open(pairs).spec
    assert spec.lineage["teacher"]["family"] == "grid-gru"
    assert (spec.num_tokens, spec.vocab_size, spec.codebook_dim, spec.num_classes) == (16, 32, 4, 10)
    assert verify(pairs) == []


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_cached_decoding_gives_the_guided_forced_logits(loaded: LoadedTeacher, guidance_scale: float) -> None:
    teacher = loaded.teacher.double()
    labels_B, tokens_BL = sequences(teacher.num_classes)
    decoding = teacher.start(labels_B, guidance_scale)
    steps = []
    for step in range(teacher.layout.num_steps):
        steps.append(decoding.logits())
        decoding.append(tokens_BL[:, teacher.layout.span(step)])
    conditional_BLV = teacher.forced_logits(labels_B, tokens_BL)
    null_BLV = teacher.forced_logits(torch.full_like(labels_B, teacher.num_classes), tokens_BL)
    assert (conditional_BLV - null_BLV).abs().max() > 0.1
    guided_BLV = null_BLV + guidance_scale * (conditional_BLV - null_BLV)
    torch.testing.assert_close(torch.cat(steps, dim=1), guided_BLV, rtol=0, atol=1e-10)


def test_tokens_are_generated_in_half_precision(place: Place, module: ModuleType) -> None:
    teacher = load_teacher(str(place.teacher), dtype=torch.bfloat16).teacher
    labels_B, tokens_BL = sequences(teacher.num_classes)
    assert teacher.start(labels_B, 1.5).logits().dtype == torch.float32
    settings = module.SamplingSettings(guidance_scale=1.5, top_k=4)
    generated_BL = generate_tokens(teacher, labels_B, settings, lambda _, span: tokens_BL[:, span])
    torch.testing.assert_close(generated_BL, tokens_BL)


def test_the_tokenizer_encodes_its_own_images(loaded: LoadedTeacher) -> None:
    tokenizer = loaded.teacher.tokenizer
    _, tokens_BL = sequences(10)
    images = tokenizer.decode(tokenizer.embed(tokens_BL))
    assert images.shape == (10, *tokenizer.image_shape)
    torch.testing.assert_close(tokenizer.encode(images), tokens_BL)


def test_the_student_starts_with_the_teachers_weights(loaded: LoadedTeacher) -> None:
    student = Student.from_teacher(loaded, (0, 8), 8, "fingerprint", 1, initialise=True)
    network, transformer = student.network, loaded.teacher.transformer
    for name, tensor in transformer.state_dict().items():
        if not name.startswith("inputs."):
            torch.testing.assert_close(network.state_dict()[name], tensor, rtol=0, atol=0)
    rows_VD = network.inputs(loaded.teacher.codebook_VC)
    spread = transformer.inputs.weight - transformer.inputs.weight.mean(0)
    assert (rows_VD - transformer.inputs.weight).square().sum() < 0.95 * spread.square().sum()


def test_the_export_loads_without_the_teacher_and_samples(place: Place, module: ModuleType) -> None:
    student = Student.from_pretrained(place.run / "student")
    assert isinstance(student.network, module.GruStudent)
    assert student.network.config == module.GruConfig()
    assert (student.timesteps, student.split) == ((0, 8), 8)
    stored: Mapping[str, Tensor] = load_file(place.run / "student" / "student.safetensors")
    assert student.network.state_dict().keys() == stored.keys()
    (batch,) = sample_images(student, np.arange(10), seed=0, timesteps=(0, 8))
    assert batch.images_BIHW.shape == (10, 1, 8, 8)
    assert batch.images_BIHW.std() > 0.01


def test_a_family_that_is_not_installed_is_refused(place: Place) -> None:
    message = "no family of teachers is called 'grid-gru': there are llamagen, var. .* group tokenleap.teachers"
    with pytest.raises(Refused, match=message):
        load_teacher(str(place.teacher))
    with pytest.raises(Refused, match=message):
        Student.from_pretrained(place.run / "student")


def test_a_family_without_a_student_is_refused_before_any_pair(
    place: Place, module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("distill.student.networks.ENTRY_POINTS", "tokenleap.no-such-group")
    config = compose(str(place.folder / "mine.toml"), [f"teacher.name={place.teacher}"])
    message = "no student is called 'grid-gru': there are llamagen, var. .* group tokenleap.no-such-group"
    with pytest.raises(Refused, match=message):
        run(config, tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


def test_a_configuration_of_another_version_is_refused(
    place: Place, loaded: LoadedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_version(family: str, settings: object) -> object:
        raise TypeError("unexpected keyword argument 'width'")

    monkeypatch.setattr("generate_pairs.teachers.registry.transformer_config", of_another_version)
    message = "mine.safetensors does not describe a teacher of the family 'grid-gru' as installed here: unexpected"
    with pytest.raises(Refused, match=message):
        load_teacher(str(place.teacher))
