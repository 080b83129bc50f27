"""What a grid would cost here: a few steps and one look of each kind of cell, measured and thrown away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distill.training.checkpoint import refuse_other_training
from distill.training.distributed import init_distributed
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
"""A probe times so many steps, and begins none after so many seconds."""

_COSTLY = ("batch_size", "threads", "token_weight", "embedding_weight", "image_weight")
"""Settings of the training that change how long a step takes."""


@dataclass(frozen=True)
class CellCost:
    """Seconds of one step and of one look, on this machine."""

    step: float
    look: float


def plan_lines(ablation: Ablation, report: Report) -> list[str]:
    """The grid as people read it, each cell with its state and what is left of its cost.

    Args:
        ablation: found possible by `refuse_ablation`.
        report: called with (kinds of cells measured, kinds in all, note).
    """
    costs = dict[tuple[Any, ...], CellCost]()
    todo = [cell for cell in ablation.cells if not ablation.is_finished(cell)]
    kinds = {_kind(cell.config): cell for cell in todo}
    for number, (kind, cell) in enumerate(kinds.items()):
        report(number, len(kinds), cell.name)
        costs[kind] = measured(cell.config, ablation.pairs)
    report(len(kinds), len(kinds), "")
    seconds = {cell.name: _left(ablation, cell, costs[_kind(cell.config)]) for cell in todo}
    lines = list(_cell_lines(ablation, seconds))
    done = len(ablation.cells) - len(todo)
    lines.append(
        f"{len(ablation.cells)} cells, {done} done; {duration(sum(seconds.values()))} to go, one after another, "
        "as measured here"
    )
    return lines


def measured(config: RunConfig, pairs: Location) -> CellCost:
    """Train a few steps and look once, in this process; keeps nothing."""
    with init_distributed(config.train.device) as world, computing_threads(1):
        training = Training(config.distill, config.teacher.name, pairs, config.pairs.num_pairs, world)
        look = CellEvaluator(config)
        for _ in range(WARM_STEPS):
            training.update()
        began, steps = time.monotonic(), 0
        while steps < TIMED_STEPS and time.monotonic() - began < MOST_SECONDS:
            training.update()
            steps += 1
        looked = time.monotonic()
        look(training)
        return CellCost((looked - began) / steps, time.monotonic() - looked)


def _kind(config: RunConfig) -> tuple[Any, ...]:
    """What a cell's cost depends on."""
    train = config.train.model_dump()
    return len(config.student.timesteps), config.student.split, *(train[name] for name in _COSTLY)


def _left(ablation: Ablation, cell: Cell, cost: CellCost) -> float:
    """Seconds that a cell still takes: from its last checkpoint, if it has one."""
    mark = refuse_other_training(ablation.cell_dir(cell).run.checkpoints, {})
    steps = cell.config.train.num_steps - (mark["step"] if mark else 0)
    looks = -(-steps // ablation.every_of(cell))
    return steps * cost.step + looks * cost.look


def _cell_lines(ablation: Ablation, seconds: dict[str, float]) -> Iterator[str]:
    width = max(len(cell.name) for cell in ablation.cells)
    for cell in ablation.cells:
        state = f"about {duration(seconds[cell.name])}" if cell.name in seconds else "done"
        looks = -(-cell.config.train.num_steps // ablation.every_of(cell))
        yield (
            f"{cell.name:<{width}}  {cell.config.train.num_steps:,} steps, {cell.epochs:.1f} epochs, "
            f"{looks} looks: {state}"
        )
