"""The command `tokenleap`: imports a command when it is used, and ends every failure with one message."""

from __future__ import annotations

import importlib
import os
import shlex
import traceback
from typing import Any

import click

from pipeline.cli.group import CommandGroup, examples

PACKAGE = "pipeline.cli.commands"
COMMANDS = {
    "run": PACKAGE,
    "plan": PACKAGE,
    "generate": PACKAGE,
    "distill": PACKAGE,
    "ablate": PACKAGE,
    "sample": PACKAGE,
    "evaluate": PACKAGE,
    "report": PACKAGE,
    "export": PACKAGE,
    "shards": f"{PACKAGE}.inspect",
    "teachers": f"{PACKAGE}.inspect",
    "students": f"{PACKAGE}.inspect",
    "settings": f"{PACKAGE}.inspect",
}
"""Every command with the package of its module."""

DISTRIBUTED = ("distill",)
"""Commands whose work is shared by several processes under torchrun."""


class Tokenleap(CommandGroup):
    """The group of all commands; each one is the object `command` in the module of its name."""

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

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes != "1" and name not in DISTRIBUTED:
            raise click.UsageError(
                f"torchrun started {processes} processes, and each would do all the work of `{name}`: start it without "
                f"torchrun, which works with {', '.join(DISTRIBUTED)} only"
            )
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an exception becomes one message on standard error and an exit code."""
        from pipeline.cli.exit_codes import explain
        from pipeline.runtime.installation import refuse_foreign_packages

        rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        try:
            refuse_foreign_packages()
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            # click handles these. A closed pipe, as in `| head`, is not reported as a failure.
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params["debug"]:
                traceback.print_exception(error)
            message, exit_code = explain(error, ctx.meta["tokenleap.command"])
            prefix = "tokenleap" if processes == "1" else f"tokenleap, process {rank} of {processes}"
            click.echo(f"{prefix}: {message}", err=True)
            ctx.exit(exit_code)


def _print_version(ctx: click.Context, parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        from pipeline.runtime.installation import version

        click.echo(f"tokenleap {version()}")
        ctx.exit()


@click.group(
    cls=Tokenleap,
    epilog=examples(
        "tokenleap run digits                      all phases, on a laptop, into runs/digits",
        "tokenleap run digits --dry-run            show what would be done",
        "tokenleap sample runs/digits/student --steps 1 --out digits.png",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Print the traceback of a failure.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def main(debug: bool) -> None:
    """Distill an autoregressive image model into a one-step generator, offline.

    Stage one, `generate`: the teacher generates pairs of noise and the token sequence that the noise determines.
    Stage two, `distill`: the student learns to generate the whole sequence from the noise in one pass.
    `run` does both, evaluates the student and writes a report.

    Run a stopped command again to resume it.
    Exit codes: 2 refused before any work, 1 failed during the work, 130 Ctrl-C, 143 SIGTERM or SIGUSR1.
    """
