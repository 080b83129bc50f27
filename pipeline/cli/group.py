"""The class of all groups of commands, and the examples at the end of a command's help."""

from __future__ import annotations

import click

from pipeline.config.nearest import nearest


class CommandGroup(click.Group):
    """A group that answers an unknown command with the nearest known one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            hint = nearest(name, known)
            correct = f"did you mean {hint}?" if hint else f"commands are {', '.join(known)}"
            raise click.UsageError(f"there is no command {name!r}; {correct}", ctx)
        return super().resolve_command(ctx, args)


def examples(*lines: str) -> str:
    """The end of a command's help: its examples, one a line."""
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)])
