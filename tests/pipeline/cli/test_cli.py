"""The command line: its commands and options, its start-up time, and the exit code of every kind of failure."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from pipeline.cli.exit_codes import explain
from pipeline.cli.main import COMMANDS, main
from pipeline.runtime.installation import PACKAGES, foreign_packages
from pipeline.runtime.signals import StoppedBySignal
from shards.core.errors import Failed, Refused

Process = Callable[..., Any]

COMMAND_LINE = {
    "run": "PRESET --out --tiny-random --captions --num-pairs --num-steps --workers --set --dry-run",
    "plan": "PRESET --tiny-random --num-pairs --device --set",
    "generate": (
        "PRESET --out --tiny-random --captions --num-pairs --workers --cluster "
        "--print-job-script --task-index --task-count --time-limit --set --dry-run --probe"
    ),
    "distill": (
        "PRESET --pairs --out --size --tiny-random --captions "
        "--num-steps --device-batch-size --print-job-script --nodes --processes --set --dry-run"
    ),
    "ablate": (
        "PRESET --pairs --out --sizes --timesteps --grid --seeds --match "
        "--every --tiny-random --captions --num-steps --workers --cluster --set --dry-run"
    ),
    "sample": (
        "STUDENT --steps --timesteps --method --teacher --labels --prompt --captions "
        "--column --text-encoder --num-images --seed --noise-weight --batch-size --device --out --dry-run"
    ),
    "evaluate": ("RUN --protocol --reference --num-images --repeats --seed --set --table --markdown --dry-run"),
    "report": "RUN",
    "shards": {
        "info": "PAIRS",
        "verify": "PAIRS --sample --seed --workers",
        "repair": "PAIRS --teacher --workers",
        "join": "PAIRS",
        "extend": "PAIRS --num-pairs --teacher --workers",
        "export": "PAIRS --to --size",
        "preview": "PAIRS --out --labels --columns --teacher",
    },
    "export": "STUDENT --format --out",
    "teachers": {"list": "", "import": "FILES --as", "inspect": "FILE", "train": "NAME --out --seed"},
    "students": {"list": "", "import": "FILES --as --out"},
    "settings": "NAME --markdown",
}
"""Scripts use these names: removing or renaming one breaks them."""


def shape(command: click.Command) -> object:
    if isinstance(command, click.Group):
        context = click.Context(command)
        names = command.list_commands(context)
        return {name: shape(command.get_command(context, name) or click.Command(name)) for name in names}
    return " ".join(
        parameter.opts[-1] if isinstance(parameter, click.Option) else str(parameter.name).upper()
        for parameter in command.params
    )


def test_commands_and_options_are_unchanged() -> None:
    assert shape(main) == COMMAND_LINE
    assert list(main.params[0].opts) == ["--debug"]


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS), ["shards", "repair"]], ids="-".join)
def test_help_imports_only_click(run_python: Process, arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pipeline.cli.main import main\n"
        f"main({[*arguments, '--help']!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'pyarrow', 'dask', 'tqdm', 'jinja2', 'fsspec', 'upath'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    ran = run_python("-c", script, folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Usage: ")


def test_help_prints_in_less_than_half_a_second(run_python: Process, tmp_path: Path) -> None:
    def seconds() -> float:
        began = time.monotonic()
        assert run_python("-m", "pipeline.cli", "--help", folder=tmp_path).returncode == 0
        return time.monotonic() - began

    assert min(seconds() for _ in range(5)) < 0.5


def all_commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from all_commands(command, (*words, name))


@pytest.mark.parametrize(
    ("words", "command"), list(all_commands(main)), ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_help_begins_with_a_line_of_what_it_does_and_ends_with_an_example(
    tokenleap: Callable[..., Result], words: tuple[str, ...], command: click.Command
) -> None:
    lines = tokenleap(*words, "--help").output.splitlines()
    assert lines[2].strip() == (command.help or "").splitlines()[0]
    assert lines[2].endswith(".")
    assert lines[-1].startswith(f"    tokenleap {' '.join(words)}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "there is no command 'rnu'; did you mean run?"),
        (["shards", "verfy", "pairs"], "there is no command 'verfy'; did you mean verify?"),
        (["teachers", "xyz"], "there is no command 'xyz'; commands are import, inspect, list, train"),
        (["run", "digits", "--ou", "x"], "No such option '--ou'. Did you mean '--out'?"),
        (["run", "digit"], "no preset 'digit'; presets are"),
        (
            ["run", "digits", "--set", "train.numsteps=3"],
            "no key train.numsteps; the nearest is train.num_steps",
        ),
        (["run", "digits", "--set", "foo=3"], "there is no key foo; `tokenleap settings` lists all keys"),
        (["settings", "trian"], "there is no section or key trian; the nearest is train."),
    ],
)
def test_an_unknown_name_is_refused_in_few_words_with_the_nearest(
    tokenleap: Callable[..., Result], words: list[str], message: str
) -> None:
    output = tokenleap(*words, code=2).output
    assert message in output
    error = output.partition("Error: ")[2] or output
    assert len(error) <= 400
    assert error.count("\n") <= 3


def test_version(tokenleap: Callable[..., Result]) -> None:
    result = tokenleap("--version")
    assert result.output.startswith("tokenleap ")


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (Refused("no such thing"), 2, "no such thing"),
        (Failed("it broke"), 1, "it broke"),
        (StoppedBySignal("5 steps are kept.", 2), 130, "stopped: 5 steps are kept. Resume with: tokenleap run x"),
        (StoppedBySignal("gone", 2, resumable=False), 130, "stopped: gone. Start again with: tokenleap run x"),
        (StoppedBySignal("5 are kept", 15), 143, "Resume with: tokenleap run x"),
        (KeyboardInterrupt(), 130, "stopped at once: "),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), 2, "cannot use /out: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/out"), 2, "cannot use /out: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left", "/out"), 1, "no space left for /out; free some"),
        (OSError(errno.EIO, "I/O error", "/out"), 1, "cannot use /out: I/O error"),
        (ImportError("No module named 'torch'"), 2, "cannot start: No module named 'torch'"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'. This is a bug in tokenleap"),
    ],
)
def test_every_kind_of_failure_has_its_exit_code(error: BaseException, exit_code: int, message: str) -> None:
    text, code = explain(error, "tokenleap run x")
    assert code == exit_code
    assert message in text


def test_a_failure_is_one_message_and_no_traceback(tokenleap: Callable[..., Result]) -> None:
    result = tokenleap("run", "digit", code=2)
    assert result.stdout == ""
    assert result.stderr.startswith(
        "tokenleap: there is no preset 'digit'; presets are digits, digits-64, digits-text, digits-var, "
    )
    assert result.stderr.count("\n") == 1


def test_a_closed_pipe_is_not_reported_as_a_failure(run_python: Process, pairs: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = run_python("-m", "pipeline.cli", "shards", "info", pairs, stdout=writing)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, "")


def test_debug_shows_the_traceback_as_well(tokenleap: Callable[..., Result]) -> None:
    result = tokenleap("--debug", "run", "digit", code=2)
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("tokenleap: there is no preset 'digit'")


def test_mistyped_commands_and_options_are_refused(tokenleap: Callable[..., Result]) -> None:
    tokenleap("runn", code=2)
    tokenleap("run", "digits", "--worker", "many", code=2)


def test_the_four_import_names_resolve_to_this_installation() -> None:
    assert foreign_packages() == {}


@pytest.mark.parametrize("name", PACKAGES[:-1])
def test_a_foreign_package_of_the_same_name_is_refused(run_python: Process, name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    # `python -m` puts the working folder first on the path.
    ran = run_python("-m", "pipeline.cli", "run", "digits", "--dry-run", folder=tmp_path)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith(f"tokenleap: cannot start: `import {name}` finds {tmp_path / name}, but this tokenleap")
    assert ran.stderr.count("\n") == 1


def test_torchrun_is_refused_for_commands_that_do_not_share_work(
    tokenleap: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = tokenleap("run", "digits", "--dry-run", code=2)
    assert "torchrun started 2 processes, and each would do all the work of `run`" in refused.output
    tokenleap("distill", "--help")


def test_each_of_several_processes_prints_its_rank(
    tokenleap: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    refused = tokenleap("distill", "digits", "--pairs", tmp_path / "none", "--out", tmp_path / "out", code=2)
    assert "tokenleap, process 1 of 2: " in refused.output
