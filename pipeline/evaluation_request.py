"""The request of `tokenleap evaluate`: the settings of the evaluation, its result file, and tables of the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tomli_w

from distill.config import EvaluationConfig
from pipeline.config.run_config import RunConfig, compose_onto
from pipeline.report.method_table import MethodTable, method_table
from pipeline.run_folder.results import same_student
from pipeline.run_folder.run_dir import RunDir
from shards.core.errors import Refused, join_first
from shards.core.mismatch import format_mismatch, mismatches
from shards.storage.files import list_names

SECTION = "evaluation."
KEPT = ("seed", "inception_weights", "device")
"""Settings of a run that apply to every protocol. Numbers of images and the reference do not."""


def requested_evaluation(config: RunConfig, changes: Sequence[str]) -> EvaluationConfig:
    """The run's own evaluation with changes `KEY=VALUE`; for another protocol, only the run's `KEPT` settings apply.

    Raises:
        Refused: a key of another section, or an invalid value.
    """
    for change in changes:
        if not change.partition("=")[0].strip().startswith(SECTION):
            raise Refused(f"{change}: only settings of the evaluation can change here, as in {SECTION}seed=1")
    own = config.evaluation.model_dump()
    # The base settings depend on the protocol, so it is resolved first.
    protocols = [change for change in changes if _key(change) == f"{SECTION}protocol"]
    protocol = compose_onto({**config.model_dump(), "evaluation": {}}, protocols).evaluation.protocol
    is_other = bool(protocols) and protocol != config.evaluation.protocol
    base = {key: own[key] for key in KEPT} if is_other else own
    if not is_other and any(_key(change) == f"{SECTION}num_images" for change in changes):
        # Its default follows from the number of images.
        base.pop("curve_images")
    return compose_onto({**config.model_dump(), "evaluation": base}, changes).evaluation


def result_file(run_dir: RunDir, config: RunConfig, evaluation: EvaluationConfig) -> Path:
    """Path of an evaluation's result: evaluation.json, or evaluation-PROTOCOL.json if it is not the run's protocol."""
    own = evaluation.protocol == config.evaluation.protocol
    return run_dir.evaluation if own else run_dir.root / f"evaluation-{evaluation.protocol}.json"


def plan_lines(run_dir: RunDir, evaluation: EvaluationConfig, file: Path) -> list[str]:
    """Describe an evaluation before it runs; writes nothing.

    Raises:
        Refused: something that the evaluation needs is missing.
    """
    from distill.evaluation.partial_results import FOLDER
    from distill.evaluation.protocols import check_clip, check_evaluation
    from distill.student.student import Student

    student = Student.from_pretrained(run_dir.student)
    check_evaluation(evaluation, student.tokenizer.image_shape)
    check_clip(evaluation, student.is_text_conditional)
    stored = len(list_names(run_dir.root / FOLDER / file.stem, ".safetensors"))
    settings = tomli_w.dumps({"evaluation": evaluation.model_dump(exclude_none=True)})
    repeats = f" with each of {evaluation.repeats} noise seeds" if evaluation.repeats > 1 else ""
    lines = [f"{evaluation.num_images:,} images of each method{repeats} into {file}"]
    if stored:
        lines.append(f"methods stored by a stopped evaluation, reused if nothing has changed: {stored}")
    return [settings, *lines]


def tables(
    run_dir: RunDir, config: RunConfig, evaluation: EvaluationConfig, changes: Sequence[str], command: str
) -> list[MethodTable]:
    """Tables of stored results: of the requested evaluation, or of all evaluations if no option was given.

    The results must have been made with `changes`, which `evaluation` includes. `command` is for the message about a
    missing result.

    Raises:
        Refused: the result is missing, scores another student, or was made with other settings.
    """
    keys = {_key(change).removeprefix(SECTION) for change in changes}
    files = [result_file(run_dir, config, evaluation)]
    if not keys:
        files += [file for file in run_dir.other_evaluations if file not in files]
    command = " ".join([command, *(f"--set {change}" for change in changes)])
    required = {key: value for key, value in evaluation.result_settings.items() if key in keys}
    exported = run_dir.read_json(run_dir.student / "config.json")
    results = {file: run_dir.read_json(file) for file in files}
    shown = {file: result for file, result in results.items() if result or file == files[0]}
    for file, result in shown.items():
        if not result:
            raise Refused(f"{file} does not exist yet: run `{command}`")
        if not same_student(result, exported):
            raise Refused(f"{file} scores another student than the current one: run `{command}` for this one")
        if differing := mismatches({key: result.get(key) for key in required}, required):
            settings = join_first([*map(format_mismatch, differing)])
            raise Refused(f"{file} was made with other settings: {settings}. Run `{command}`")
    return [method_table(result, config.teacher.name) for result in shown.values()]


def _key(change: str) -> str:
    return change.partition("=")[0].strip()
