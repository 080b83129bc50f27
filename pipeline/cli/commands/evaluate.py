"""`tokenleap evaluate`: evaluate a run's student, or print tables of earlier results."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import FolderPath, dry_run_option, overrides


@click.command("evaluate")
@click.argument("run", type=FolderPath)
@click.option(
    "--protocol",
    metavar="NAME",
    help="digits, samples, adm, dd or folder; short for --set evaluation.protocol=NAME, and stronger. Another than the "
    "run's own is written to evaluation-NAME.json.",
)
@click.option(
    "--reference",
    metavar="PATH",
    help="What images are held against: adm's .npz, dd's statistic.pth, folder's folder; "
    "short for --set evaluation.reference=PATH, and stronger.",
)
@click.option("--num-images", type=int, metavar="N", help="Images of each method, likewise.")
@click.option(
    "--repeats", type=int, metavar="R", help="Noise seeds, whose mean and spread are told, likewise."
)
@click.option("--seed", type=int, metavar="S", help="The first noise seed, likewise.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting of the evaluation, as in --set evaluation.device=cuda; repeatable, the last wins.",
)
@click.option("--table", is_flag=True, help="Print the table of what was judged before; judge nothing.")
@click.option("--markdown", is_flag=True, help="Print it as Markdown.")
@dry_run_option
def command(
    run: Path,
    protocol: str | None,
    reference: str | None,
    num_images: int | None,
    repeats: int | None,
    seed: int | None,
    settings: tuple[str, ...],
    table: bool,
    markdown: bool,
    dry_run: bool,
) -> None:
    """Judge the student of a run once more, or print what was found.

    evaluation.json and samples/ are made anew. RUN is the folder of `tokenleap run`; its own settings apply where no
    option says otherwise. An evaluation that was stopped goes on when it is given again. docs/evaluation.md says what
    each protocol is, and which files it needs.

    \b
    Examples:
      tokenleap evaluate runs/digits --repeats 3
      tokenleap evaluate runs/digits --table               every table that there is
      tokenleap evaluate runs/var-d16 --protocol adm --reference VIRTUAL_imagenet256_labeled.npz
      tokenleap evaluate runs/var-d16 --protocol folder --reference photos --set evaluation.features=inception
    """
    from pipeline.config.run_config import as_text
    from pipeline.evaluation_request import planned, requested_evaluation, result_file, tables
    from pipeline.run_folder.run_dir import RunDir

    run_dir = RunDir(run)
    config = run_dir.read_config()
    flags = {
        "evaluation.protocol": protocol,
        "evaluation.reference": None if reference is None else as_text(reference),
        "evaluation.num_images": num_images,
        "evaluation.repeats": repeats,
        "evaluation.seed": seed,
    }
    changes = overrides(settings, flags)
    asked = requested_evaluation(config, changes)
    if table or markdown:
        shown = tables(run_dir, config, asked, changes, f"tokenleap evaluate {run}")
        click.echo("\n\n".join("\n".join(one.markdown() if markdown else one.text()) for one in shown))
        return

    from distill.student.export import refuse_missing_export

    refuse_missing_export(run_dir.student)
    file = result_file(run_dir, config, asked)
    if dry_run:
        click.echo("\n".join(planned(run_dir, asked, file)))
        return
    from pipeline.run import scorer
    from pipeline.runtime.signals import stopping

    with stopping() as should_stop:
        scorer(run_dir, config, should_stop, asked, file.name)
    from pipeline.report.terminal_summary import table_lines
    from pipeline.run_folder.results import describe_evaluation

    judged = run_dir.read_json(file)
    click.echo("\n".join([describe_evaluation(judged), *table_lines(judged["rows"])]))
    click.echo(f"{file}; `tokenleap report {run}` puts it on a page")
