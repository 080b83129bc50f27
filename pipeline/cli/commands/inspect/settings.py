"""`tokenleap settings`: explain the keys of a configuration."""

from __future__ import annotations

import click

from pipeline.cli.group import examples


@click.command(
    "settings",
    epilog=examples(
        "tokenleap settings",
        "tokenleap settings train",
        "tokenleap settings student.noise_weight",
    ),
)
@click.argument("name", required=False, metavar="[KEY|SECTION]")
@click.option("--markdown", is_flag=True, help="Print the reference page of all settings.")
def command(name: str | None, markdown: bool) -> None:
    """Print every setting with its meaning, type, range and default, one a line.

    Each line begins with the setting's key and ends with whether it may change when a command resumes.
    """
    from pipeline.config.settings_text import setting_lines, settings_page

    if markdown and name is not None:
        raise click.UsageError("--markdown prints all settings: give no KEY or SECTION")
    click.echo("\n".join(settings_page() if markdown else setting_lines(name)))
