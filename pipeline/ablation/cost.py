"""Estimates the cost of a grid on this machine: times a few steps and one evaluation of each kind of cell."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

from distill.evaluation.curve_scores import StudentScores
from distill.training.checkpoint import refuse_other_training
from distill.training.distributed import init_distributed
from distill.training.preflight import checked_manifest
from distill.training.state import Training
from generate_pairs.compute.threads import computing_threads
from pipeline.ablation.ablation import Ablation
from pipeline.ablation.cell import measure
from pipeline.ablation.grid import Cell, eval_interval
from pipeline.config.run_config import RunConfig
from pipeline.runtime.progress import duration
from shards.core.callbacks import Report
from shards.storage.paths import Location

WARM_STEPS = 3
TIMED_STEPS = 20
MOST_SECONDS = 20.0
"""A measurement times at most `TIMED_STEPS` steps and starts none after `MOST_SECONDS`."""

_COSTLY = ("batch_size", "threads", "token_weight", "embedding_weight", "image_weight")
"""Settings of the training that change how long a step takes."""


class CellCost(NamedTuple):
    """Seconds of one step and of one evaluation on this machine."""

    step: float
    evaluation: float


def plan_lines(ablation: Ablation, report: Report) -> list[str]:
    """Describe a valid grid: a line for each cell with its state and remaining cost, and the total.

    `report` is called with (kinds of cells measured, total kinds, note).
    """
    costs = dict[tuple[Any, ...], CellCost]()
    todo = [cell for cell in ablation.cells if not ablation.is_finished(cell)]
    kinds = {_kind(cell.config): cell for cell in todo}
    for number, (kind, cell) in enumerate(kinds.items()):
        report(number, len(kinds), cell.name)
        costs[kind] = measured(cell.config, ablation.pairs)
    report(len(kinds), len(kinds), "")
    seconds = {cell.name: _remaining_seconds(ablation, cell, costs[_kind(cell.config)]) for cell in todo}
    width = max(len(cell.name) for cell in ablation.cells)
    lines = []
    for cell in ablation.cells:
        num_steps = cell.config.train.num_steps
        evaluations = math.ceil(num_steps / eval_interval(cell.config, ablation.every))
        state = f"about {duration(seconds[cell.name])}" if cell.name in seconds else "done"
        lines.append(
            f"{cell.name:<{width}}  {num_steps:,} steps, {cell.epochs:.1f} epochs, {evaluations} evaluations: {state}"
        )
    return [
        *lines,
        f"{len(lines)} cells, {len(lines) - len(todo)} done; about {duration(sum(seconds.values()))} left, "
        "one after another, as measured on this machine",
    ]


def measured(config: RunConfig, pairs: Location) -> CellCost:
    """Time a few training steps and one evaluation in this process; writes nothing."""
    with init_distributed(config.train.device) as world, computing_threads(1):
        manifest = checked_manifest(config.distill, pairs)
        training = Training(config.distill, config.teacher.name, manifest, config.pairs.num_pairs, world)
        scores = StudentScores(config.evaluation)
        for _ in range(WARM_STEPS):
            training.update()
        began, steps = time.monotonic(), 0
        while steps < TIMED_STEPS and time.monotonic() - began < MOST_SECONDS:
            training.update()
            steps += 1
        trained = time.monotonic()
        measure(training, scores)
        return CellCost((trained - began) / steps, time.monotonic() - trained)


def _kind(config: RunConfig) -> tuple[Any, ...]:
    """The settings that a cell's cost depends on."""
    train = config.train.model_dump()
    return len(config.student.timesteps), config.student.split, *(train[name] for name in _COSTLY)


def _remaining_seconds(ablation: Ablation, cell: Cell, cost: CellCost) -> float:
    """Remaining seconds of a cell, from its last checkpoint if there is one."""
    mark = refuse_other_training(ablation.cell_dir(cell).checkpoints, {})
    steps = cell.config.train.num_steps - (mark["step"] if mark else 0)
    evaluations = math.ceil(steps / eval_interval(cell.config, ablation.every))
    return steps * cost.step + evaluations * cost.evaluation
