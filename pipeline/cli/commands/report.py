"""`tokenleap report`: write a run's report."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.group import examples
from pipeline.cli.options import FolderPath


@click.command(
    "report",
    epilog=examples(
        "tokenleap report runs/digits",
    ),
)
@click.argument("run", type=FolderPath)
def command(run: Path) -> None:
    """Write RUN/report.html from the run's current results.

    The page embeds its images and curves, so it is a single file.
    """
    from pipeline.report.run_page import write_report
    from pipeline.report.terminal_summary import summary_lines
    from pipeline.run_folder.results import read_results
    from pipeline.run_folder.run_dir import RunDir

    run_dir = RunDir(run)
    write_report(run_dir)
    click.echo("\n".join(summary_lines(read_results(run_dir))))
