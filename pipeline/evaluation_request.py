"""What `tokenleap evaluate` is asked for: settings of the evaluation, the file of its answers, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from distill.config import EvaluationConfig
from pipeline.config.run_config import RunConfig, compose_onto
from pipeline.report.method_table import MethodTable, method_table
from pipeline.run_folder.results import same_student
from pipeline.run_folder.run_dir import RunDir
from shards.core.errors import Refused
from shards.storage.files import list_names

SECTION = "evaluation."
KEPT = ("seed", "inception_weights", "device")
"""Settings of a run that hold for every protocol: numbers of images and the reference do not."""


def requested_evaluation(config: RunConfig, changes: Sequence[str]) -> EvaluationConfig:
    """The evaluation that is asked for: the run's own with changes.

    By another protocol than the run's only the run's `KEPT` count.

    Args:
        config: the run's.
        changes: `KEY=VALUE`, of two for a key the last wins.

    Raises:
        Refused: a key of another section, or a value that cannot be.
    """
    for change in changes:
        if not change.partition("=")[0].strip().startswith(SECTION):
            raise Refused(f"{change}: only settings of the evaluation can change here, as in {SECTION}seed=1")
    own = config.evaluation.model_dump()
    # The protocol itself must be known before anything else can be.
    protocols = [change for change in changes if _key(change) == f"{SECTION}protocol"]
    protocol = compose_onto({**config.model_dump(), "evaluation": {}}, protocols).evaluation.protocol
    other = bool(protocols) and protocol != config.evaluation.protocol
    base = {key: own[key] for key in KEPT} if other else own
    if not other and any(_key(change) == f"{SECTION}num_images" for change in changes):
        # It follows from the number of images unless it is given.
        base.pop("curve_images")
    return compose_onto({**config.model_dump(), "evaluation": base}, changes).evaluation


def result_file(run_dir: RunDir, config: RunConfig, asked: EvaluationConfig) -> Path:
    """Where an evaluation is written: evaluation.json, or a file of its protocol where that is not the run's own."""
    own = asked.protocol == config.evaluation.protocol
    return run_dir.evaluation if own else run_dir.root / f"evaluation-{asked.protocol}.json"


def planned(run_dir: RunDir, asked: EvaluationConfig, file: Path) -> list[str]:
    """What would be done, in lines; writes nothing.

    Raises:
        Refused: something that the evaluation needs is missing.
    """
    from distill.evaluation.partial_results import FOLDER
    from distill.evaluation.protocols import check_clip, check_evaluation
    from distill.student.student import Student

    student = Student.from_pretrained(run_dir.student)
    check_evaluation(asked, student.tokenizer.image_shape)
    check_clip(asked, student.is_text_conditional)
    kept = len(list_names(run_dir.root / FOLDER / file.stem, ".safetensors"))
    settings = tomli_w.dumps({"evaluation": asked.model_dump(exclude_none=True)})
    times = f" with each of {asked.repeats} noise seeds" if asked.repeats > 1 else ""
    lines = [f"{asked.num_images:,} images of each method{times} into {file}"]
    if kept:
        lines.append(f"methods kept of an evaluation that was stopped, if nothing has changed: {kept}")
    return [settings, *lines]


def tables(
    run_dir: RunDir, config: RunConfig, asked: EvaluationConfig, changes: Sequence[str], command: str
) -> list[MethodTable]:
    """The tables of what was judged: of every evaluation that there is, or of the one that the changes ask for.

    Args:
        run_dir: the run.
        config: its own.
        asked: with the changes.
        changes: what was asked for by option, and must be what the file was made with.
        command: that makes what is missing, for the message.

    Raises:
        Refused: there is none, it judges another student, or it was made with other settings.
    """
    keys = {_key(change).removeprefix(SECTION) for change in changes}
    wanted = [result_file(run_dir, config, asked)]
    if not keys:
        wanted += [file for file in run_dir.other_evaluations if file not in wanted]
    again = " ".join([command, *(f"--set {change}" for change in changes)])
    exported = run_dir.read_json(run_dir.student / "config.json")
    made = []
    for file in wanted:
        judged = run_dir.read_json(file)
        if not judged and file != wanted[0]:
            continue
        _refuse_other(
            file, judged, exported, {key: asked.asked[key] for key in keys & asked.asked.keys()}, again
        )
        made.append(method_table(judged, config.teacher.name))
    return made


def _refuse_other(
    file: Path, judged: dict[str, Any], exported: dict[str, Any], asked: dict[str, Any], way: str
) -> None:
    if not judged:
        raise Refused(f"there is no {file} yet: `{way}` makes it")
    if not same_student(judged, exported):
        raise Refused(f"{file} judges another student than lies there now: `{way}` judges that one")
    differing = [
        f"{key} {judged.get(key)}, asked {value}" for key, value in asked.items() if judged.get(key) != value
    ]
    if differing:
        raise Refused(f"{file} was made with {'; '.join(differing)}: `{way}` makes it so")


def _key(change: str) -> str:
    return change.partition("=")[0].strip()
