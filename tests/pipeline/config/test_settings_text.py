"""Every setting is explained in one line, on the terminal and on the reference page."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.keys import leaves
from pipeline.config.run_config import RunConfig, compose
from pipeline.config.settings_text import setting_lines, settings_page
from shards.core.errors import Refused
from shards.core.settings import FREE, UPWARD

pytestmark = pytest.mark.quick

FIELDS = dict(leaves(RunConfig))
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "settings.md"


def test_every_setting_has_a_line_with_its_meaning_and_when_it_may_change() -> None:
    lines = {line.partition(": ")[0]: line.partition(": ")[2] for line in setting_lines()}
    assert list(lines) == list(FIELDS)
    for key, field in FIELDS.items():
        assert field.description, key
        assert lines[key].startswith(field.description)
        assert lines[key].endswith("May change on resume.") == (field.json_schema_extra == FREE)
        assert lines[key].endswith("May grow on resume.") == (field.json_schema_extra == UPWARD)
        assert lines[key].endswith("May change in `tokenleap evaluate`.") == (
            key.startswith("evaluation.") and field.json_schema_extra != FREE
        )


def test_lines_state_type_range_and_default() -> None:
    assert setting_lines("train.ema_decay") == [
        "train.ema_decay: upper limit of the decay (i + 1) / (i + 10). A number, at least 0, below 1. Default 0.9999. "
        "Fixed on resume."
    ]
    (line,) = setting_lines("evaluation.reference")
    assert "Not set by default." in line
    (line,) = setting_lines("teacher.name")
    assert "Text. Required." in line


def test_the_printed_defaults_are_those_of_the_settings() -> None:
    minimal = RunConfig.model_validate({"teacher": {"name": "digits"}}).model_dump()
    for key, field in FIELDS.items():
        section, _, name = key.rpartition(".")
        value = (minimal[section] if section else minimal)[name]
        if not field.is_required():
            assert value == field.default, key


def test_a_section_prints_its_keys_only() -> None:
    assert [line.partition(":")[0] for line in setting_lines("student")] == [
        "student.timesteps",
        "student.split",
        "student.noise_weight",
        "student.initialise",
    ]


@pytest.mark.parametrize(("name", "near"), [("trian", "train"), ("train.numsteps", "train.num_steps")])
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(Refused, match=f"no section or key {name}; the nearest is {near}\\."):
        setting_lines(name)


def test_the_reference_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text("utf-8") == "\n".join(settings_page()) + "\n"


def test_the_page_has_every_line_of_the_terminal() -> None:
    entries = [line for line in settings_page() if line.startswith("- `")]
    assert [entry.removeprefix("- `").replace("`:", ":", 1) for entry in entries] == setting_lines()


def test_a_message_describes_at_most_three_errors() -> None:
    with pytest.raises(Refused) as refused:
        compose("digits", [f"train.{name}=-1" for name in ("num_steps", "batch_size", "warmup_steps", "threads", "seed")])
    assert str(refused.value).count("cannot be") == 3
    assert str(refused.value).endswith("; and 2 more")
