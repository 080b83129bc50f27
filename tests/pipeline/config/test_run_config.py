"""Presets, overrides, and the messages about invalid settings."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pipeline.config.keys import leaves, nearest
from pipeline.config.run_config import RunConfig, compose, parse_value, run_name, to_toml
from shards.core.errors import Refused

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("20_000", 20_000),
        ("true", True),
        ("0,8", [0, 8]),
        ("[0, 8]", [0, 8]),
        ("0.9,0.95", [0.9, 0.95]),
        ('"digits"', "digits"),
        ("digits-var", "digits-var"),
        ("a,b", "a,b"),
        ("runs/a.safetensors", "runs/a.safetensors"),
        ("1\nother = 2", "1\nother = 2"),
        ("", ""),
    ],
)
def test_a_value_is_toml_or_a_list_or_plain_text(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_the_last_override_of_a_key_wins() -> None:
    config = compose("digits", ["train.seed=1", "student.timesteps=0,4", "train.seed=2"])
    assert config.train.seed == 2
    assert config.student.timesteps == (0, 4)


def test_a_whole_number_is_a_number() -> None:
    assert compose("digits", ["teacher.guidance_scale=3"]).teacher.guidance_scale == 3.0


def test_one_number_becomes_a_list_if_the_key_holds_a_list() -> None:
    assert compose("digits", ["student.timesteps=0"]).student.timesteps == (0,)
    assert compose("digits", ["train.timestep_weights=2"]).train.timestep_weights == (2.0,)
    assert compose("digits", ["student.noise_weight=2"]).student.noise_weight == 2.0
    assert compose("digits", ["student.noise_weight=2,0.5"]).student.noise_weight == (2.0, 0.5)


def test_toml_contains_the_whole_configuration() -> None:
    config = compose("digits", ["pairs.seed=7"])
    text = to_toml(config)
    assert RunConfig.model_validate(tomllib.loads(text)) == config
    assert "max_grad_norm" in text
    assert "solver_steps" not in text


def test_a_preset_may_be_a_file_and_missing_keys_have_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[teacher]\nname = "digits"\n[train]\nnum_steps = 5\n')
    config = compose(str(file))
    assert config.train.num_steps == 5
    assert config.pairs == RunConfig(teacher=config.teacher).pairs
    assert run_name(str(file)) == "mine"
    assert run_name(str(file), tiny_random=True) == "mine-tiny-random"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pairs.num_pair=3", "there is no key pairs.num_pair; the nearest is pairs.num_pairs"),
        ("num_steps=3", "there is no key num_steps; the nearest is train.num_steps"),
        ("trian.seed=3", "there is no key trian; "),
        ("pairs.num_pairs=0", "pairs.num_pairs cannot be 0: it is a whole number, above 0"),
        ("pairs.num_pairs=many", "pairs.num_pairs cannot be 'many': it is a whole number, above 0"),
        ("teacher.top_p=1.5", "teacher.top_p cannot be 1.5: it is a number, above 0, at most 1"),
        ("train.seed=-1", "train.seed cannot be -1: it is a whole number, at least 0, below 9223372036854775808"),
        ("pairs.num_pairs=true", "pairs.num_pairs: it cannot be true: true and false are"),
        ("pairs.num_pairs=1979-05-27", "pairs.num_pairs cannot be datetime.date(1979, 5, 27): it is a whole"),
        (
            'student.noise_weight=1,"much"',
            "student.noise_weight cannot be 'much': it is a number or numbers separated by commas",
        ),
        ("student.noise_weight=1,-1", "one for each, at least 0; got 1, -1"),
        ("teacher.guidance_scale=inf", "teacher.guidance_scale cannot be inf: it is a number, at least 0"),
        ("train.learning_rate=nan", "train.learning_rate cannot be nan: it is a number, above 0"),
        ("train.betas=0.9,inf", "train.betas cannot be inf: it is 2 numbers separated by commas"),
        ("train.betas=0.9", "train.betas cannot be [0.9]: it is 2 numbers separated by commas"),
        ("train.betas=0.9,x", "train.betas cannot be '0.9,x': it is 2 numbers separated by commas"),
        ("student.timesteps=0,0.5", "student.timesteps cannot be 0.5: it is whole numbers separated by commas"),
        ("student.timesteps=0,4,2", "student.timesteps: timesteps must ascend from 0 without repeats"),
        ("pairs.noise=loud", "pairs.noise cannot be 'loud': it is one of stored, counter"),
        ("student.initialise=no", "student.initialise cannot be 'no': it is one of teacher, random"),
        (
            "evaluation.num_images=99",
            "evaluation.num_images: num_images is 99, and the scores of the protocol digits need at least 100",
        ),
        ("evaluation.protocol=imagenet", "evaluation.protocol cannot be 'imagenet': it is one of digits, samples"),
        ("train=3", "train is a section, not a value: set one of its keys, as in train.KEY=VALUE"),
        ("train.seed.x=3", "train.seed cannot be {'x': 3}: it is a whole number"),
        ("train.seed", "cannot set 'train.seed': write KEY=VALUE, as in pairs.num_pairs=1000"),
        ("=3", "cannot set '=3': write KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key_type_and_range(override: str, message: str) -> None:
    with pytest.raises(Refused) as refused:
        compose("digits", [override])
    assert message in str(refused.value)


def test_several_wrong_settings_are_reported_together() -> None:
    with pytest.raises(Refused, match=r"pairs\.seed .*; train\.seed "):
        compose("digits", ["train.seed=-1", "pairs.seed=-1"])


def test_an_unknown_preset_is_refused_with_all_names_and_the_nearest() -> None:
    with pytest.raises(Refused) as refused:
        compose("digit-var")
    assert "presets are digits, digits-64, digits-text, digits-var, llamagen-b, " in str(refused.value)
    assert "var-d24; the nearest is digits-var" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[teacher\n", "is not TOML: "),
        ("[train]\nseed = 1\n", "teacher is missing and has no default"),
        ('[teacher]\nname = "digits"\ncolour = 1\n', "there is no key teacher.colour"),
    ],
)
def test_an_invalid_file_is_refused_with_its_name(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(content)
    with pytest.raises(Refused) as refused:
        compose(str(file))
    assert str(file) in str(refused.value)
    assert message in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"preset file nowhere\.toml does not exist"):
        compose("nowhere.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(Refused, match=r"cannot read the preset file .*folder\.toml: Is a directory"):
        compose(str(tmp_path / "folder.toml"))


def test_an_unrelated_name_has_no_nearest_key() -> None:
    assert nearest("qqqq", [key for key, _ in leaves(RunConfig)]) is None
