"""Estimates the cost of a grid on this machine: times a few steps and one evaluation of each kind of cell."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distill.training.checkpoint import refuse_other_training
from distill.training.distributed import init_distributed
from distill.training.preflight import checked_manifest
from distill.training.state import Training
from generate_pairs.compute.threads import computing_threads
from pipeline.ablation.ablation import Ablation
from pipeline.ablation.cell import CellEvaluator
from pipeline.ablation.grid import Cell
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


@dataclass(frozen=True)
class CellCost:
    """Seconds of one step and of one evaluation on this machine."""

    step: float
    evaluation: float


def plan_lines(ablation: Ablation, report: Report) -> list[str]:
    """Describe the grid: a line for each cell with its state and remaining cost, and the total.

    Args:
        ablation: an ablation that `refuse_ablation` accepts.
        report: called with (kinds of cells measured, total kinds, note).
    """
    costs = dict[tuple[Any, ...], CellCost]()
    todo = [cell for cell in ablation.cells if not ablation.is_finished(cell)]
    kinds = {_kind(cell.config): cell for cell in todo}
    for number, (kind, cell) in enumerate(kinds.items()):
        report(number, len(kinds), cell.name)
        costs[kind] = measured(cell.config, ablation.pairs)
    report(len(kinds), len(kinds), "")
    seconds = {cell.name: _remaining_seconds(ablation, cell, costs[_kind(cell.config)]) for cell in todo}
    done = len(ablation.cells) - len(todo)
    total = (
        f"{len(ablation.cells)} cells, {done} done; about {duration(sum(seconds.values()))} left, one after another, "
        "as measured on this machine"
    )
    return [*_cell_lines(ablation, seconds), total]


def measured(config: RunConfig, pairs: Location) -> CellCost:
    """Time a few training steps and one evaluation in this process; writes nothing."""
    with init_distributed(config.train.device) as world, computing_threads(1):
        manifest = checked_manifest(config.distill, pairs)
        training = Training(config.distill, config.teacher.name, manifest, config.pairs.num_pairs, world)
        evaluate = CellEvaluator(config)
        for _ in range(WARM_STEPS):
            training.update()
        began, steps = time.monotonic(), 0
        while steps < TIMED_STEPS and time.monotonic() - began < MOST_SECONDS:
            training.update()
            steps += 1
        trained = time.monotonic()
        evaluate(training)
        return CellCost((trained - began) / steps, time.monotonic() - trained)


def _kind(config: RunConfig) -> tuple[Any, ...]:
    """The settings that a cell's cost depends on."""
    train = config.train.model_dump()
    return len(config.student.timesteps), config.student.split, *(train[name] for name in _COSTLY)


def _remaining_seconds(ablation: Ablation, cell: Cell, cost: CellCost) -> float:
    """Remaining seconds of a cell, from its last checkpoint if there is one."""
    mark = refuse_other_training(ablation.cell_dir(cell).run.checkpoints, {})
    steps = cell.config.train.num_steps - (mark["step"] if mark else 0)
    evaluations = -(-steps // ablation.eval_interval(cell))
    return steps * cost.step + evaluations * cost.evaluation


def _cell_lines(ablation: Ablation, seconds: dict[str, float]) -> Iterator[str]:
    width = max(len(cell.name) for cell in ablation.cells)
    for cell in ablation.cells:
        state = f"about {duration(seconds[cell.name])}" if cell.name in seconds else "done"
        evaluations = -(-cell.config.train.num_steps // ablation.eval_interval(cell))
        yield (
            f"{cell.name:<{width}}  {cell.config.train.num_steps:,} steps, {cell.epochs:.1f} epochs, "
            f"{evaluations} evaluations: {state}"
        )
