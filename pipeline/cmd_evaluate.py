"""`onestep evaluate`: judge a run's student again."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import FolderPath


@click.command("evaluate")
@click.argument("run", type=FolderPath)
def command(run: Path) -> None:
    """Judge the student of a run once more.

    evaluation.json and samples/ are made anew. RUN is the folder of `onestep run`; its own settings apply.

    \b
    Example:
      onestep evaluate runs/digits
    """
    from pipeline.cmd_sample import refuse_missing_export
    from pipeline.results import read_results
    from pipeline.run_dir import RunDir
    from pipeline.signals import stopping
    from pipeline.summary import table_lines

    run_dir = RunDir(run)
    config = run_dir.read_config()
    refuse_missing_export(run_dir.student)
    from pipeline.run import judge

    with stopping() as should_stop:
        judge(run_dir, config, should_stop)
    click.echo("\n".join(table_lines(read_results(run_dir).rows)))
    click.echo(f"{run_dir.evaluation}; `onestep report {run}` puts it on a page")
