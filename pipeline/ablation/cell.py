"""One cell of an ablation: a run's folder without its own pairs, and the learning curve of its student.

The curve has one file for each evaluation. The file is committed before the checkpoint that follows, so a killed cell
resumes from its last checkpoint and ends with the same numbers. `finished.json` is the commit mark of a finished cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.evaluation.curve_scores import StudentScores
from distill.training.metrics import join_metrics
from distill.training.state import Training
from distill.training.trainer import EvalCallback, train
from pipeline.config.run_config import RunConfig
from pipeline.report.run_page import write_report
from pipeline.run_folder.run_dir import RunDir, check, claim
from pipeline.runtime.progress import notifier
from shards.core.callbacks import Report, ShouldStop
from shards.core.errors import Refused
from shards.storage.files import commit_bytes, list_names, read_bytes
from shards.storage.paths import Location

Number = Mapping[str, Any]
"""One number of a curve: `method` (None if measured on pairs), `metric`, `value` and `protocol`."""


class CellDir(RunDir):
    """The folder of a cell: a run's folder with a curve and a commit mark."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.curve = root / "curve"
        self.finished = root / "finished.json"

    def is_finished(self, config: RunConfig) -> bool:
        """Whether the cell has finished training with this configuration.

        Raises:
            Refused: finished.json or the student's config.json is damaged.
        """
        mark = self.read_json(self.finished)
        if mark.get("num_steps") != config.train.num_steps:
            return False
        student = self.read_json(self.student / "config.json").get("student_sha256")
        return student is not None and mark.get("student_sha256") == student

    def steps(self) -> list[int]:
        """Steps at which the student was evaluated."""
        return [int(name.removesuffix(".json")) for name in list_names(self.curve, ".json")]

    def numbers(self, step: int) -> list[Number]:
        """The numbers of one of these steps.

        Raises:
            Refused: the file is damaged.
        """
        path = self._file(step)
        try:
            return [dict(number) for number in json.loads(read_bytes(path))]
        except (ValueError, TypeError) as error:
            raise Refused(f"{path} is damaged: delete {self.root} to train this cell again") from error

    def add(self, step: int, numbers: list[Number]) -> None:
        """Store the numbers of a step."""
        commit_bytes(self._file(step), (json.dumps(numbers, indent=1) + "\n").encode())

    def _file(self, step: int) -> Path:
        return self.curve / f"{step:08d}.json"


def run_cell(
    config: RunConfig, pairs: Location, root: Path, eval_interval: int, *, report: Report, should_stop: ShouldStop
) -> None:
    """Train and evaluate a cell's student, from its last checkpoint if there is one. Does nothing for a finished cell.

    `report` is called with (steps done, total steps, losses as text), `should_stop` after every step.

    Raises:
        Refused, Failed, Stopped: as `distill.training.trainer.train`; finished work is kept.
    """
    cell = CellDir(root)
    check(root, config)
    if cell.is_finished(config):
        return
    # Write this file before claiming the folder: without it, `tokenleap run` would generate new pairs there. The path is
    # absolute, because another process may resume the cell from another working folder.
    commit_bytes(cell.external_pairs, f"{pairs.absolute()}\n".encode())
    claim(root, config)
    scores = StudentScores(config.evaluation)
    trained = train(
        config.distill,
        config.teacher.name,
        pairs,
        cell.student,
        size=config.pairs.num_pairs,
        report=report,
        should_stop=should_stop,
        eval_callback=EvalCallback(eval_interval, lambda training: cell.add(training.step, measure(training, scores))),
        notify=notifier(root.name),
    )
    join_metrics(cell.student / "metrics", cell.metrics)
    write_report(cell)
    student = cell.read_json(cell.student / "config.json")
    mark = {"num_steps": trained.num_steps, "student_sha256": student["student_sha256"]}
    commit_bytes(cell.finished, (json.dumps(mark, indent=2) + "\n").encode())


def measure(training: Training, scores: StudentScores) -> list[Number]:
    """Evaluate a student during training: on held-out pairs, on training pairs, and by its images."""
    numbers: list[Number] = []
    for name, kind, batch in (
        ("heldout", "held-out", training.heldout_batch),
        ("train", "training", training.train_batch),
    ):
        numbers += [
            _number(None, f"{name}_{metric}", value, f"{len(batch.index_B)} {kind} pairs")
            for metric, value in training.token_metrics(batch).items()
        ]
    with training.averaged_weights() as student:
        for method, by_metric in scores(student).items():
            numbers += [_number(method, metric, value, scores.protocol) for metric, value in by_metric.items()]
    return numbers


def _number(method: str | None, metric: str, value: float, protocol: str) -> Number:
    return {"method": method, "metric": metric, "value": value, "protocol": protocol}
