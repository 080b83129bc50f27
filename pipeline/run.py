"""Both stages in one folder: pairs, student, evaluation and report. Finished phases are not repeated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distill.config import EvaluationConfig
from distill.evaluation.evaluate import EVALUATION_FILE, evaluate
from distill.evaluation.protocols import check_clip, check_evaluation
from distill.student.networks import student_factory
from distill.training.checkpoint import refuse_other_training
from distill.training.metrics import join_metrics
from distill.training.preflight import check_distillation, training_plan
from distill.training.trainer import train
from generate_pairs.generation.generate import generate
from generate_pairs.generation.plan import GenerationPlan, plan_generation
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.checkpoints import LoadedTeacher
from pipeline.config.run_config import RunConfig
from pipeline.report.run_page import write_report
from pipeline.report.terminal_summary import summary_lines
from pipeline.run_folder.results import add_seconds, read_results, same_student
from pipeline.run_folder.run_dir import RunDir, check, claim
from pipeline.runtime.progress import notifier, progress
from pipeline.runtime.signals import stopping
from shards.core.callbacks import Report, ShouldStop
from shards.core.errors import Failed, Refused


def plan(config: RunConfig, out: Path) -> list[str]:
    """Describe what `run` would do; writes nothing.

    Raises:
        Refused: the folder contains another run, or a setting cannot be satisfied.
    """
    run_dir, generation = _check_run(config, out)
    planned = f"{config.evaluation.num_images:,} images of each method"
    sections = {
        f"pairs into {run_dir.pairs}:": generation.lines(),
        f"student into {run_dir.student}:": training_plan(config.distill, config.pairs.num_pairs),
        f"evaluation into {run_dir.evaluation}:": ["is done" if evaluation_is_current(run_dir, config) else planned],
    }
    return [line for title, lines in sections.items() for line in (title, *(f"  {text}" for text in lines))]


def run(config: RunConfig, out: Path, *, workers: int) -> list[str]:
    """Generate the pairs, train and evaluate the student and write the report; finished phases are skipped.

    Args:
        config: configuration of the whole run.
        out: the run's folder; created if it does not exist.
        workers: local worker processes for the pairs; 0 generates them in this process.

    Returns:
        The summary, about ten lines.

    Raises:
        Refused: the folder contains another run, or a setting cannot be satisfied.
        Failed: a phase failed; finished work is kept.
        Stopped: a signal arrived; finished work is kept.
    """
    _, plan = _check_run(config, out)
    run_dir = claim(out, config)
    with stopping() as should_stop:
        with _phase(run_dir, "pairs", "pairs") as report:
            generate(config.generate, run_dir.pairs, workers=workers, report=report, should_stop=should_stop, plan=plan)
        with _phase(run_dir, "student", "steps") as report:
            train(
                config.distill,
                plan.loaded,
                run_dir.pairs,
                run_dir.student,
                size=config.pairs.num_pairs,
                report=report,
                should_stop=should_stop,
                notify=notifier("student"),
            )
        join_metrics(run_dir.student / "metrics", run_dir.metrics)
        if not evaluation_is_current(run_dir, config):
            evaluate_run(run_dir, plan.loaded, config.evaluation, should_stop)
    write_report(run_dir)
    return summary_lines(read_results(run_dir))


def evaluate_run(
    run_dir: RunDir,
    teacher: str | LoadedTeacher,
    evaluation: EvaluationConfig,
    should_stop: ShouldStop,
    name: str = EVALUATION_FILE,
) -> None:
    """Evaluate a run's student and write the result file and samples/ into the run's folder."""
    student, pairs, out = run_dir.student, run_dir.pairs, run_dir.root
    with _phase(run_dir, "evaluation", "methods") as report:
        evaluate(student, teacher, pairs, out, evaluation, report=report, should_stop=should_stop, name=name)


def evaluation_is_current(run_dir: RunDir, config: RunConfig) -> bool:
    """Whether evaluation.json scores the current student with the settings of `config`."""
    evaluation = run_dir.read_json(run_dir.evaluation)
    exported = run_dir.read_json(run_dir.student / "config.json")
    has_settings = all(evaluation.get(key) == value for key, value in config.evaluation.result_settings.items())
    return "student_sha256" in exported and same_student(evaluation, exported) and has_settings


def _check_run(config: RunConfig, out: Path) -> tuple[RunDir, GenerationPlan]:
    """Check everything that `run` can refuse, before it claims its folder; writes nothing."""
    run_dir = check(out, config)
    # The end of the run reads these files: report damage before the work, not after it.
    for path in (run_dir.environment, run_dir.evaluation, run_dir.seconds):
        run_dir.read_json(path)
    _refuse_other_size(run_dir, config.pairs.num_pairs)
    generation = plan_generation(config.generate, run_dir.pairs)
    spec = generation.spec
    check_distillation(config.distill, TokenLayout(spec.tokens_per_step), spec.num_heldout)
    student_factory(spec.lineage["teacher"]["family"])
    check_evaluation(config.evaluation, generation.loaded.teacher.tokenizer.image_shape)
    check_clip(config.evaluation, generation.captions is not None)
    return run_dir, generation


def _refuse_other_size(run_dir: RunDir, num_pairs: int) -> None:
    """Allow another number of pairs only until the student's training starts."""
    mark = refuse_other_training(run_dir.checkpoints, {})
    found = num_pairs if mark is None else mark["identity"]["pairs"]
    if found != num_pairs:
        raise Refused(
            f"pairs.num_pairs: found {found}, requested {num_pairs}: the student in {run_dir.student} has started "
            f"training. Give the stored number to resume. For another student, use "
            f"`tokenleap generate {run_dir.config} --out {run_dir.pairs} --num-pairs {num_pairs}`, then "
            f"`tokenleap distill {run_dir.config} --pairs {run_dir.pairs} --out NEW`"
        )


@contextmanager
def _phase(run_dir: RunDir, name: str, unit: str) -> Iterator[Report]:
    """Show the progress of a phase and record its time, also if it ends early."""
    started = time.monotonic()
    try:
        with progress(name, unit) as report:
            yield report
    except BaseException:
        # The reason of the early end must reach the user, even if a full disk also refuses seconds.json.
        with suppress(Failed, Refused):
            add_seconds(run_dir, name, time.monotonic() - started)
        raise
    add_seconds(run_dir, name, time.monotonic() - started)
