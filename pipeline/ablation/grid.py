"""The grid of an ablation: expands axes to cells, each a complete configuration with a name.

A cell differs from the base configuration only in the axes, and its name lists their values, so equal cells of two
commands have the same folder.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.config.keys import is_list, leaves, unknown_key
from pipeline.config.run_config import RunConfig, changed, parse_value
from shards.core.errors import Refused
from shards.core.mismatch import flat
from shards.core.settings import FREE

EVALUATIONS = 10
"""Default number of evaluations during the training of a cell."""

Match = Literal["steps", "epochs"]

_OWN_OPTIONS = {
    "pairs.num_pairs": "--sizes",
    "train.seed": "--seeds",
    "student.timesteps": "--timesteps",
    "train.num_steps": "--num-steps and --match",
    "train.warmup_steps": "--set (with --match epochs it grows with the steps)",
}


@dataclass(frozen=True)
class Axes:
    """The axes of an ablation.

    Attributes:
        sizes: distinct numbers of training pairs.
        seeds: train.seed takes the values 0 .. seeds - 1.
        timesteps: sets of the student's timesteps; the preset's own if empty.
        swept: further keys of stage two, each with its values.
    """

    sizes: tuple[int, ...]
    seeds: int = 1
    timesteps: tuple[tuple[int, ...], ...] = ()
    swept: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One training of the grid: the name of its folder, and its complete configuration."""

    name: str
    config: RunConfig

    @property
    def size(self) -> int:
        return self.config.pairs.num_pairs

    @property
    def epochs(self) -> float:
        """Number of passes over the pairs."""
        return self.config.train.num_steps * self.config.train.batch_size / self.size


def parse_sizes(text: str, available: int) -> tuple[int, ...]:
    """Parse a list of counts (`2500`) or shares of the available pairs (`0.5`, `50%`).

    Raises:
        Refused: a size is neither, is given twice, or is a share that is too small or above 1.
    """
    sizes = tuple(_size(part.strip(), available) for part in text.split(","))
    if repeated := sorted({size for size in sizes if sizes.count(size) > 1}):
        raise Refused(f"--sizes names {', '.join(map(str, repeated))} twice: give each size once")
    return sizes


def parse_sweep(text: str) -> tuple[str, tuple[Any, ...]]:
    """Parse `KEY=a,b` to a key of stage two and its values.

    Raises:
        Refused: the text has another form, the key is unknown or cannot be swept, or a value is given twice.
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not values:
        raise Refused(f"--grid {text!r}: write KEY=VALUE,VALUE, as in train.learning_rate=1e-3,3e-3")
    _refuse_unsweepable(key)
    parsed = tuple(parse_value(value.strip()) for value in values.split(","))
    if len(set(map(repr, parsed))) < len(parsed):
        raise Refused(f"--grid {key} names a value twice: {values}")
    return key, parsed


def _refuse_unsweepable(key: str) -> None:
    """Refuse a key that changes the pairs, the evaluation or no measurement, or that has its own option."""
    fields = dict(leaves(RunConfig))
    if key not in fields:
        raise Refused(f"--grid {key}: {unknown_key(key, list(fields))}")
    section = key.partition(".")[0]
    if key in _OWN_OPTIONS:
        raise Refused(f"--grid {key}: use {_OWN_OPTIONS[key]} for it")
    if section in {"teacher", "pairs"}:
        raise Refused(
            f"--grid {key}: it changes the pairs, which are the same for all cells; generate another data set with "
            "`tokenleap generate` and run an ablation on it"
        )
    if section == "evaluation":
        raise Refused(f"--grid {key}: all cells use the same evaluation; set it for all with --set {key}=VALUE")
    if fields[key].json_schema_extra == FREE or section not in {"student", "train"}:
        raise Refused(f"--grid {key}: it changes nothing that is measured")
    if is_list(fields[key].annotation):
        raise Refused(f"--grid {key}: its values are lists, which commas cannot separate; run two ablations with --set")


def make_cells(base: RunConfig, axes: Axes, match: Match) -> list[Cell]:
    """All cells in the order in which they run: seed by seed, so that a complete grid of one seed exists early.

    With match `steps` every cell has `train.num_steps` updates. With `epochs` every cell makes as many passes over its
    pairs as the base configuration makes over `pairs.num_pairs` pairs, and the warmup keeps its share of the steps.

    Raises:
        Refused: a value is invalid for its key, or two cells are equal.
    """
    cells: dict[str, Cell] = {}
    combinations = itertools.product(
        range(axes.seeds), axes.timesteps or (base.student.timesteps,), *axes.swept.values(), sorted(axes.sizes)
    )
    for seed, timesteps, *values, size in combinations:
        changes = dict(zip(axes.swept, values, strict=True))
        changes |= {"pairs.num_pairs": size, "train.seed": seed, "student.timesteps": timesteps}
        config = changed(base, changes, "a cell of the grid")
        if match == "epochs":
            factor = size / base.pairs.num_pairs * base.train.batch_size / config.train.batch_size
            changes["train.num_steps"] = max(1, round(base.train.num_steps * factor))
            changes["train.warmup_steps"] = round(base.train.warmup_steps * factor)
            config = changed(base, changes, "a cell of the grid")
        name = cell_name(base, config)
        if name in cells:
            raise Refused(f"--grid: two cells are both {name}: give each value once")
        cells[name] = Cell(name, config)
    return list(cells.values())


def cell_name(base: RunConfig, config: RunConfig) -> str:
    """A cell's folder name: size, timesteps, seed, and every swept key that differs from the base."""
    timesteps = "-".join(map(str, config.student.timesteps))
    parts = [f"size-{config.pairs.num_pairs}", f"timesteps-{timesteps}", f"seed-{config.train.seed}"]
    parts += [f"{key}-{value}" for key, value in swept_values(base, config).items()]
    return "_".join(re.sub(r"[^\w.+-]", "-", part) for part in parts)


def swept_values(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The keys of stage two in which a cell differs from the base, without those that have their own axis."""
    before, after = flat(base.model_dump()), flat(config.model_dump())
    return {
        key: value
        for key, value in after.items()
        if key.partition(".")[0] in {"student", "train"} and key not in _OWN_OPTIONS and before[key] != value
    }


def eval_interval(config: RunConfig, every: int | None) -> int:
    """Steps between evaluations of a cell; by default the training has `EVALUATIONS` of them."""
    return every or math.ceil(config.train.num_steps / EVALUATIONS)


def _size(text: str, available: int) -> int:
    if re.fullmatch(r"\d+(_\d+)*", text):
        return int(text)
    share = re.fullmatch(r"(\d*\.\d+|\d+(?:\.\d*)?)(%?)", text)
    if share is None:
        raise Refused(f"--sizes: {text!r} is neither a number of pairs, such as 2500, nor a share, such as 0.5 or 50%")
    part = float(share[1]) / (100 if share[2] else 1)
    if not 0 < part <= 1:
        raise Refused(f"--sizes: {text} is not a valid share of the pairs: it must be above 0 and at most 1, or 100%")
    size = round(part * available)
    if not size:
        raise Refused(f"--sizes: {text} of {available} pairs is less than one pair: use a larger share")
    return size
