"""One cell of an ablation: an ordinary run's folder whose pairs lie elsewhere, and the curve of its student.

The curve is a file for each look, committed before the checkpoint that follows it, so that a cell that is killed goes
on from its last checkpoint and ends in the same numbers. `finished.json` is the only mark that a cell is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
"""One number of a curve: `method` (None for what is measured on pairs), `metric`, `value` and `protocol`."""


@dataclass(frozen=True)
class CellDir:
    """Where everything of a cell lies; all but the curve and the mark as in any run's folder."""

    root: Path

    @property
    def run(self) -> RunDir:
        return RunDir(self.root)

    @property
    def curve(self) -> Path:
        return self.root / "curve"

    @property
    def finished(self) -> Path:
        return self.root / "finished.json"

    def is_finished(self, config: RunConfig) -> bool:
        """Whether the whole training that a configuration asks for is there.

        Raises:
            Refused: the mark is damaged.
        """
        mark = self.run.read_json(self.finished)
        if mark.get("num_steps") != config.train.num_steps:
            return False
        student = self.run.read_json(self.run.student / "config.json").get("student_sha256")
        return student is not None and mark.get("student_sha256") == student

    def steps(self) -> list[int]:
        """At which steps the student was looked at so far."""
        return [int(name.removesuffix(".json")) for name in list_names(self.curve, ".json")]

    def numbers(self, step: int) -> list[Number]:
        """What was found at one of these steps.

        Raises:
            Refused: the file is damaged.
        """
        path = self._look(step)
        try:
            return [dict(number) for number in json.loads(read_bytes(path))]
        except (ValueError, TypeError) as error:
            raise Refused(f"{path} is damaged: delete {self.root} to train this cell again") from error

    def add(self, step: int, numbers: list[Number]) -> None:
        """Keep what was found at a step."""
        commit_bytes(self._look(step), (json.dumps(numbers, indent=1) + "\n").encode())

    def _look(self, step: int) -> Path:
        return self.curve / f"{step:08d}.json"


def run_cell(
    config: RunConfig, pairs: Location, root: Path, every: int, *, report: Report, should_stop: ShouldStop
) -> None:
    """Train a cell's student, looked at on its way, from where it stands; a finished one is left alone.

    Args:
        config: of the cell.
        pairs: the data set that all cells share; nothing is written there.
        root: the cell's folder.
        every: steps between looks.
        report: called with (steps done, steps in all, the losses in words).
        should_stop: asked after every step.

    Raises:
        Refused, Failed, Stopped: as `distill.training.trainer.train`; what is finished is kept.
    """
    cell = CellDir(root)
    check(root, config)
    if cell.is_finished(config):
        return
    # Before the folder is claimed: a run's folder without it would have pairs of its own made. A whole path: who goes on
    # with the cell may stand elsewhere.
    commit_bytes(cell.run.external_pairs, f"{pairs.absolute()}\n".encode())
    claim(root, config)
    run = CellEvaluator(config)
    trained = train(
        config.distill,
        config.teacher.name,
        pairs,
        cell.run.student,
        size=config.pairs.num_pairs,
        report=report,
        should_stop=should_stop,
        eval_callback=EvalCallback(every, lambda training: cell.add(training.step, run(training))),
        notify=notifier(root.name),
    )
    join_metrics(cell.run.student / "metrics", cell.run.metrics)
    write_report(cell.run)
    student = cell.run.read_json(cell.run.student / "config.json")
    mark = {"num_steps": trained.num_steps, "student_sha256": student["student_sha256"]}
    commit_bytes(cell.finished, (json.dumps(mark, indent=2) + "\n").encode())


class CellEvaluator:
    """Measures a student on its way: on held-out pairs, on pairs that it learns from, and by its images."""

    def __init__(self, config: RunConfig) -> None:
        self.scores = StudentScores(config.evaluation)

    def __call__(self, training: Training) -> list[Number]:
        numbers: list[Number] = []
        for name, batch in (("heldout", training.heldout_batch), ("train", training.train_batch)):
            protocol = f"{len(batch.index_B)} {'held-out' if name == 'heldout' else 'training'} pairs"
            numbers += [
                {"method": None, "metric": f"{name}_{metric}", "value": value, "protocol": protocol}
                for metric, value in training.token_metrics(batch).items()
            ]
        with training.averaged() as student:
            for method, scores in self.scores(student).items():
                numbers += [
                    {"method": method, "metric": metric, "value": value, "protocol": self.scores.protocol}
                    for metric, value in scores.items()
                ]
        return numbers
