"""The shipped presets: valid, named in the help, and with the official numbers for the paper's settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from distill.evaluation.protocols import check_evaluation
from distill.training.preflight import check_distillation
from generate_pairs.generation.plan import refuse_unknown_sampling
from generate_pairs.teachers.checkpoints import load_teacher
from generate_pairs.teachers.published import TEACHERS
from pipeline.config.run_config import compose, presets
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

Command = Callable[..., Result]

VAR = {"guidance_scale": 2.0, "top_k": 900, "top_p": 0.95, "temperature": 1.0}
LLAMAGEN = {"guidance_scale": 2.0, "top_k": 8000, "top_p": 1.0, "temperature": 1.0}
CAPTIONS = {"guidance_scale": 7.5, "top_k": 1000, "top_p": 1.0, "temperature": 1.0}
OFFICIAL: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int]] = {
    "var-d16": ("var-d16", VAR, (0, 5), 5),
    "var-d20": ("var-d20", VAR, (0, 4), 4),
    "var-d24": ("var-d24", VAR, (0, 4), 4),
    "llamagen-b": ("llamagen-b-256", LLAMAGEN, (0, 80), 80),
    "llamagen-l": ("llamagen-l-256", LLAMAGEN, (0, 80), 130),
    "llamagen-t2i": ("llamagen-t2i-256", CAPTIONS, (0, 80), 130),
    "llamagen-t2i-512": ("llamagen-t2i-512", CAPTIONS, (0, 320), 520),
}
"""Teacher, its sampling, timesteps and split, from the sampling code in github.com/microsoft/distilled_decoding.

For captions the sampling is LlamaGen's own (github.com/FoundationVision/LlamaGen), and the timesteps are ours.
"""

DIGITS = ["digits", "digits-64", "digits-text", "digits-var"]


def test_these_presets_ship() -> None:
    assert list(presets()) == sorted([*DIGITS, *OFFICIAL])


@pytest.mark.parametrize("name", presets())
def test_a_shipped_preset_is_valid_and_has_a_description(name: str) -> None:
    config = compose(name)
    assert config.description
    assert config.student.timesteps[0] == 0
    assert config.teacher.name in ([name] if name in DIGITS else TEACHERS)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_papers_settings_are_those_of_the_official_sampling_code(name: str) -> None:
    teacher, sampling, timesteps, split = OFFICIAL[name]
    config = compose(name)
    assert config.teacher.model_dump() == {"name": teacher, "dtype": "float32", **sampling}
    assert (config.student.timesteps, config.student.split) == (timesteps, split)
    assert (config.train.betas, config.train.ema_decay) == ((0.9, 0.95), 0.9999)
    assert config.evaluation.protocol == "samples"


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_papers_settings_fit_their_teachers(name: str) -> None:
    config = compose(name)
    loaded = load_teacher(f"tiny-random/{config.teacher.name}")
    refuse_unknown_sampling(config.generate, loaded)
    check_distillation(config.distill, loaded.teacher.layout, config.pairs.heldout)
    published = TEACHERS[config.teacher.name]
    assert published.transformer.config.layout == loaded.teacher.layout
    side = published.tokenizer.config.image_size
    check_evaluation(config.evaluation, (3, side, side))


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "plan"])
def test_a_preset_without_its_teacher_is_refused_with_the_import_command(
    tokenleap: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: list[str]
) -> None:
    monkeypatch.setenv("TOKENLEAP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    result = tokenleap("run", name, *more, code=2)
    teacher = OFFICIAL[name][0]
    files = TEACHERS[teacher].transformer.file, TEACHERS[teacher].tokenizer.file
    assert result.stderr.startswith(
        f"tokenleap: teacher.name: {teacher} is not imported yet. Get {files[0]} and {files[1]}, then `tokenleap "
        f"teachers import {files[0].name} {files[1].name} --as {teacher}`"
    )
    assert list(tmp_path.iterdir()) == []


def test_images_that_do_not_fit_the_protocol_are_refused_before_the_folder_is_claimed(
    tokenleap: Command, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    protocol = ["--set", "evaluation.protocol=digits", "--set", "evaluation.num_images=100"]
    result = tokenleap("run", "var-d16", "--tiny-random", "--out", out, "--workers", 0, *protocol, code=2)
    assert "digits scores images of 1 x 8 x 8, and this teacher's are of 3 x 32 x 32" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_preset(tokenleap: Command) -> None:
    words = set(tokenleap("run", "--help").output.replace(",", " ").replace(":", " ").split())
    assert set(presets()) <= words


def test_the_refusal_of_an_unknown_preset_names_every_one() -> None:
    with pytest.raises(Refused) as refused:
        compose("var")
    assert all(name in str(refused.value) for name in presets())
