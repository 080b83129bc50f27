"""Every setting as one line of text: its key, meaning, type, range, default, and whether it may change later."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from pydantic.fields import FieldInfo

from pipeline.config.keys import bounds, kind, leaves
from pipeline.config.nearest import nearest
from pipeline.config.run_config import RunConfig
from shards.core.errors import Refused
from shards.core.settings import FREE, UPWARD

PAGE_TITLE = """# Settings

`tokenleap settings --markdown` prints this page; `tokenleap settings KEY` or `tokenleap settings SECTION` prints a part
of it. `--set KEY=VALUE` changes a setting. A preset of your own is a TOML file whose tables are the sections. "On resume"
means the same command again, on a folder with finished work. The default holds if the preset does not mention the key.
"""


def setting_lines(name: str | None = None) -> list[str]:
    """One line for each setting, or for those of one section, or for one key.

    Raises:
        Refused: there is no such section or key.
    """
    fields = dict(leaves(RunConfig))
    sections = list(dict.fromkeys(key.partition(".")[0] for key in fields if "." in key))
    chosen = [key for key in fields if name is None or key == name or key.startswith(f"{name}.")]
    if not chosen:
        hint = nearest(str(name), [*sections, *fields])
        correct = f"the nearest is {hint}" if hint else f"sections are {', '.join(sections)}"
        raise Refused(f"there is no section or key {name}; {correct}. `tokenleap settings` lists all")
    return [setting_line(key, fields[key]) for key in chosen]


def setting_line(key: str, field: FieldInfo) -> str:
    """`KEY: meaning. Type, range. Default. Whether it may change on resume.`"""
    valid = ", ".join(filter(None, [kind(field.annotation), bounds(field)]))
    facts = (valid, _default(field), _may_change(key, field))
    return f"{key}: {field.description}. " + " ".join(f"{fact[0].upper()}{fact[1:]}." for fact in facts)


def settings_page() -> Iterator[str]:
    """The lines of the reference page."""
    yield from PAGE_TITLE.splitlines()
    for section, lines in groupby(setting_lines(), lambda line: line.partition(":")[0].rpartition(".")[0]):
        yield from ["", f"## [{section}]" if section else "## Without a section", ""]
        for line in lines:
            key, _, rest = line.partition(":")
            yield f"- `{key}`:{rest}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "not set by default"
    if isinstance(value, bool):
        return f"default {str(value).lower()}"
    if isinstance(value, tuple):
        return f"default {','.join(map(str, value))}" if value else "empty by default"
    return "empty by default" if value == "" else f"default {value}"


def _may_change(key: str, field: FieldInfo) -> str:
    if field.json_schema_extra == FREE:
        return "may change on resume"
    if field.json_schema_extra == UPWARD:
        return "may grow on resume"
    return "may change in `tokenleap evaluate`" if key.startswith("evaluation.") else "fixed on resume"
