"""`tokenleap evaluate`: evaluate a run's student, or print tables of stored results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.group import examples
from pipeline.cli.options import FolderPath, dry_run_option, literal, overrides

if TYPE_CHECKING:
    from distill.config import EvaluationConfig
    from pipeline.config.run_config import RunConfig
    from pipeline.run_folder.run_dir import RunDir


@click.command(
    "evaluate",
    epilog=examples(
        "tokenleap evaluate runs/digits --repeats 3",
        "tokenleap evaluate runs/digits --table               all stored tables",
        "tokenleap evaluate runs/var-d16 --protocol adm --reference VIRTUAL_imagenet256_labeled.npz",
        "tokenleap evaluate runs/var-d16 --protocol folder --reference photos --set evaluation.features=inception",
    ),
)
@click.argument("run", type=FolderPath)
@click.option(
    "--protocol",
    metavar="NAME",
    help="digits, samples, adm, dd or folder; short for --set evaluation.protocol=NAME, and overrides it. For another "
    "protocol than the run's own, the result is written to evaluation-NAME.json.",
)
@click.option(
    "--reference",
    metavar="PATH",
    callback=literal,
    help="Reference images or statistics: adm's .npz, dd's statistic.pth, folder's folder; "
    "short for --set evaluation.reference=PATH, and overrides it.",
)
@click.option("--num-images", type=int, metavar="N", help="Images of each method; short for evaluation.num_images.")
@click.option(
    "--repeats",
    type=int,
    metavar="R",
    help="Noise seeds; scores are their mean and spread. Short for evaluation.repeats.",
)
@click.option("--seed", type=int, metavar="S", help="The first noise seed; short for evaluation.seed.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting of the evaluation, as in --set evaluation.device=cuda; repeatable, the last one wins.",
)
@click.option("--table", is_flag=True, help="Print tables of stored results; compute nothing.")
@click.option("--markdown", is_flag=True, help="Print these tables as Markdown.")
@dry_run_option
def command(run: Path, table: bool, markdown: bool, dry_run: bool, **options: Any) -> None:
    """Evaluate the student of a run again, or print stored results.

    RUN is the folder of `tokenleap run`; its own settings are the defaults. evaluation.json and samples/ are replaced.
    Run a stopped evaluation again to resume it. docs/how-to/evaluation.md describes the protocols and
    the files they need.
    """
    from pipeline.evaluation_request import requested_evaluation, tables
    from pipeline.run_folder.run_dir import RunDir

    run_dir = RunDir(run)
    config = run_dir.read_config()
    names = ("protocol", "reference", "num_images", "repeats", "seed")
    changes = overrides(options, {name: f"evaluation.{name}" for name in names})
    evaluation = requested_evaluation(config, changes)
    if table or markdown:
        shown = tables(run_dir, config, evaluation, changes, f"tokenleap evaluate {run}")
        click.echo("\n\n".join("\n".join(each.markdown() if markdown else each.text()) for each in shown))
    else:
        _evaluate(run_dir, config, evaluation, dry_run)


def _evaluate(run_dir: RunDir, config: RunConfig, evaluation: EvaluationConfig, dry_run: bool) -> None:
    """Evaluate the student and print the result, or only print the plan."""
    from distill.student.export import refuse_missing_export
    from pipeline.evaluation_request import plan_lines, result_file

    refuse_missing_export(run_dir.student)
    file = result_file(run_dir, config, evaluation)
    if dry_run:
        click.echo("\n".join(plan_lines(run_dir, evaluation, file)))
        return
    from pipeline.report.terminal_summary import result_lines
    from pipeline.run import evaluate_run
    from pipeline.run_folder.results import describe_evaluation
    from pipeline.runtime.signals import stopping

    with stopping() as should_stop:
        evaluate_run(run_dir, config.teacher.name, evaluation, should_stop, file.name)
    result = run_dir.read_json(file)
    click.echo("\n".join([describe_evaluation(result), *result_lines(result)]))
    click.echo(f"{file}; `tokenleap report {run_dir.root}` adds it to the report")
