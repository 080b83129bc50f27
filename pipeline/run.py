"""Both stages end to end in one folder: pairs, student, evaluation, report; finished phases stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distill.config import EvaluationConfig
from distill.evaluation.evaluate import EVALUATION_FILE, evaluate
from distill.evaluation.protocols import check_clip, check_evaluation
from distill.student.networks import student_of
from distill.training.checkpoint import refuse_other_training
from distill.training.metrics import join_metrics
from distill.training.preflight import check_distillation, training_plan
from distill.training.trainer import train
from generate_pairs.generation.generate import generate
from generate_pairs.generation.plan import GenerationPlan, plan_generation
from generate_pairs.teachers.base import TokenLayout
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
    """What `run` would do, in lines; writes nothing.

    Raises:
        Refused: the folder holds another run, or a setting asks for what is not there.
    """
    run_dir, generation = _checked(config, out)
    lines = [f"pairs into {run_dir.pairs}:", *_indented(generation.lines())]
    lines += [
        f"student into {run_dir.student}:",
        *_indented(training_plan(config.distill, config.pairs.num_pairs)),
    ]
    state = (
        "is done"
        if evaluation_is_current(run_dir, config)
        else f"{config.evaluation.num_images:,} images a method"
    )
    return [*lines, f"evaluation into {run_dir.evaluation}:", *_indented([state])]


def run(config: RunConfig, out: Path, *, workers: int) -> list[str]:
    """Make the pairs, the student, the evaluation and the report, as far as they are not there.

    Args:
        config: the whole configuration.
        out: the run's folder; made if it is not there.
        workers: local worker processes for the pairs; 0 computes them in this process.

    Returns:
        The summary, in about ten lines.

    Raises:
        Refused: the folder holds another run, or a setting asks for what is not there.
        Failed: something broke on the way; what was finished is kept.
        Stopped: a signal asked for it; what was finished is kept.
    """
    _checked(config, out)
    run_dir = claim(out, config)
    with stopping() as should_stop:
        with _phase(run_dir, "pairs", "pairs") as report:
            generate(config.generate, run_dir.pairs, workers=workers, report=report, should_stop=should_stop)
        with _phase(run_dir, "student", "steps") as report:
            train(
                config.distill,
                config.teacher.name,
                run_dir.pairs,
                run_dir.student,
                size=config.pairs.num_pairs,
                report=report,
                should_stop=should_stop,
                notify=notifier("student"),
            )
        join_metrics(run_dir.student / "metrics", run_dir.metrics)
        if not evaluation_is_current(run_dir, config):
            scorer(run_dir, config, should_stop)
    write_report(run_dir)
    return summary_lines(read_results(run_dir))


def scorer(
    run_dir: RunDir,
    config: RunConfig,
    should_stop: ShouldStop,
    asked: EvaluationConfig | None = None,
    name: str = EVALUATION_FILE,
) -> None:
    """Evaluate a run's student into evaluation.json and samples/, as the run's settings say or as is asked here."""
    with _phase(run_dir, "evaluation", "methods") as report:
        evaluate(
            run_dir.student,
            config.teacher.name,
            run_dir.pairs,
            run_dir.root,
            asked or config.evaluation,
            report=report,
            should_stop=should_stop,
            name=name,
        )


def evaluation_is_current(run_dir: RunDir, config: RunConfig) -> bool:
    """Whether evaluation.json judges the student that lies there, in the way that is asked."""
    judged = run_dir.read_json(run_dir.evaluation)
    exported = run_dir.read_json(run_dir.student / "config.json")
    asked = all(judged.get(key) == value for key, value in config.evaluation.asked.items())
    return "student_sha256" in exported and same_student(judged, exported) and asked


def _checked(config: RunConfig, out: Path) -> tuple[RunDir, GenerationPlan]:
    """Everything that a run can be refused for, before it claims its folder; writes nothing.

    Raises:
        Refused: as `run`.
    """
    run_dir = check(out, config)
    # Damage in what the end of the run reads should be told now, not after the work.
    for path in (run_dir.environment, run_dir.evaluation, run_dir.seconds):
        run_dir.read_json(path)
    _refuse_other_size(run_dir, config.pairs.num_pairs)
    generation = plan_generation(config.generate, run_dir.pairs)
    spec = generation.spec
    check_distillation(config.distill, TokenLayout(spec.tokens_per_step), spec.num_heldout)
    student_of(spec.lineage["teacher"]["family"])
    check_evaluation(config.evaluation, generation.image_shape)
    check_clip(config.evaluation, generation.captions is not None)
    return run_dir, generation


def _refuse_other_size(run_dir: RunDir, num_pairs: int) -> None:
    """More pairs may be made only as long as no student has begun to learn from fewer.

    Raises:
        Refused: one has.
    """
    mark = refuse_other_training(run_dir.checkpoints, {})
    there = num_pairs if mark is None else mark["identity"]["pairs"]
    if there != num_pairs:
        raise Refused(
            f"pairs.num_pairs: there {there}, asked {num_pairs}: the student in {run_dir.student} has begun to "
            f"learn from {there:,} pairs. Ask for that many to go on with it. For another student of more, make "
            f"them with `tokenleap generate {run_dir.config} --out {run_dir.pairs} --num-pairs {num_pairs}`, then "
            f"`tokenleap distill {run_dir.config} --pairs {run_dir.pairs} --out` another folder"
        )


@contextmanager
def _phase(run_dir: RunDir, name: str, unit: str) -> Iterator[Report]:
    """A phase with its progress shown and its time added up, also when it stops half-way."""
    began = time.monotonic()
    try:
        with progress(name, unit) as report:
            yield report
    except BaseException:
        # What stopped the phase is what a person must hear, and a full disk refuses this file, too.
        with suppress(Failed, Refused):
            add_seconds(run_dir, name, time.monotonic() - began)
        raise
    add_seconds(run_dir, name, time.monotonic() - began)


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
