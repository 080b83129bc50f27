"""Shared by the command lines of the benchmarks: expected failures as one message, and Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from shards.core.errors import Failed, Refused


class Script(click.Command):
    """A command that reports expected failures by a message and the project's exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Refused, Failed) as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2 if isinstance(error, Refused) else 1)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others are right-aligned."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        for row in (header, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
