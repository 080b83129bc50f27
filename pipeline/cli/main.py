"""The command `tokenleap`: loads a command when it is asked for, and ends every failure with one message."""

from __future__ import annotations

import importlib
import os
import shlex
import traceback
from typing import Any

import click

ROOM = "pipeline.cli.commands"
COMMANDS = {
    "run": ROOM,
    "plan": ROOM,
    "generate": ROOM,
    "distill": ROOM,
    "ablate": ROOM,
    "sample": ROOM,
    "evaluate": ROOM,
    "report": ROOM,
    "export": ROOM,
    "shards": f"{ROOM}.inspect",
    "teachers": f"{ROOM}.inspect",
    "students": f"{ROOM}.inspect",
}
"""Every command, with the package of its module."""

SHARED = ("distill",)
"""Commands that several processes of torchrun do together."""


class Tokenleap(click.Group):
    """The group of all commands; each is `command` in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{COMMANDS[cmd_name]}.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["tokenleap.command"] = shlex.join(["tokenleap", *args])
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes != "1" and name not in SHARED:
            raise click.UsageError(
                f"torchrun started {processes} processes, and each would do all of `{name}`: start it without torchrun, "
                f"which is for {', '.join(SHARED)}"
            )
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; what it raises becomes one message on standard error and an exit code."""
        from pipeline.cli.exit_codes import explain
        from pipeline.runtime.installation import refuse_foreign_packages

        rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        try:
            refuse_foreign_packages()
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            # click ends these itself; a reader that had enough, as in `| head`, is no failure to tell.
            raise
        except (Exception, KeyboardInterrupt) as error:  # the last stop of every failure there is
            if ctx.params["debug"]:
                traceback.print_exception(error)
            message, exit_code = explain(error, ctx.meta["tokenleap.command"])
            speaker = "tokenleap" if processes == "1" else f"tokenleap, process {rank} of {processes}"
            click.echo(f"{speaker}: {message}", err=True)
            ctx.exit(exit_code)


def _print_version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:
        from pipeline.runtime.installation import version

        click.echo(f"tokenleap {version()}")
        ctx.exit()


@click.group(
    cls=Tokenleap, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main(debug: bool) -> None:
    """Turn a slow autoregressive image model into a one-step generator, offline.

    Stage one, `generate`: the teacher makes pairs of noise and the token sequence that the noise determines.
    Stage two, `distill`: the student learns to make the whole sequence from the noise at once.
    `run` does both, judges the student and writes a report.

    \b
    Examples:
      tokenleap run digits                      everything, on a laptop, into runs/digits
      tokenleap run digits --dry-run            what it would do
      tokenleap sample runs/digits/student --steps 1 --out digits.png

    Every long command goes on where it stopped when it is given again.
    Exit codes: 2 refused before any work, 1 failed on the way, 130 Ctrl-C, 143 SIGTERM or SIGUSR1.
    """
