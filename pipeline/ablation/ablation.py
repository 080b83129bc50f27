"""An ablation as it is asked for, its folder, and all that it can be refused for before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.protocols import check_evaluation
from distill.student.networks import build_network
from distill.training.preflight import check_distillation
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.checkpoints import LoadedTeacher
from generate_pairs.teachers.meta_device import on_meta_device
from pipeline.ablation.cell import CellDir
from pipeline.ablation.grid import Cell, Match, eval_interval
from pipeline.config.keys import leaves
from pipeline.config.run_config import RunConfig, to_toml
from pipeline.run_folder.run_dir import RunDir, check
from shards.core.errors import Refused
from shards.core.mismatch import flat
from shards.core.settings import FREE
from shards.dataset.manifest import Manifest
from shards.storage.files import commit_bytes
from shards.storage.paths import Location

SCHEMA_VERSION = 1

_AXES = {"pairs.num_pairs", "train.seed", "student.timesteps"}
"""Keys in which the cells of one folder may differ from its base, besides those that are swept."""


@dataclass(frozen=True)
class Ablation:
    """What is asked for.

    Attributes:
        root: the ablation's folder.
        pairs: the data set that all cells learn from.
        base: what the cells have in common.
        cells: what is to be trained, in this order.
        match: whether cells have as many steps, or as many passes.
        every: steps between looks; None for a tenth of a cell's steps.
    """

    root: Path
    pairs: Location
    base: RunConfig
    cells: tuple[Cell, ...]
    match: Match
    every: int | None

    @property
    def config_file(self) -> Path:
        return self.root / "config.toml"

    @property
    def identity_file(self) -> Path:
        return self.root / "ablation.json"

    @property
    def table_file(self) -> Path:
        return self.root / "ablation.parquet"

    @property
    def cells_folder(self) -> Path:
        return self.root / "cells"

    def cell_dir(self, cell: Cell) -> CellDir:
        """Where a cell lies."""
        return CellDir(self.cells_folder / cell.name)

    def every_of(self, cell: Cell) -> int:
        """Steps between looks at a cell."""
        return eval_interval(cell.config, self.every)

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell needs no more work."""
        return self.cell_dir(cell).is_finished(cell.config)


def refuse_ablation(ablation: Ablation, loaded: LoadedTeacher) -> None:
    """Refuse what cannot be done, before any work; writes nothing.

    Raises:
        Refused: sizes that are not there or too small, settings that do not fit the teacher, a folder that holds
            another ablation or cannot hold this one.
    """
    manifest = Manifest.open(ablation.pairs)
    layout, image_shape = TokenLayout(manifest.spec.tokens_per_step), loaded.teacher.tokenizer.image_shape
    available = manifest.view().size
    check_evaluation(ablation.base.evaluation, image_shape)
    for cell in ablation.cells:
        _refuse_size(cell, available, manifest)
        try:
            check_distillation(cell.config.distill, layout, manifest.spec.num_heldout)
        except Refused as refusal:
            raise Refused(f"{cell.name}: {refusal}") from refusal
        every = ablation.every_of(cell)
        if every > cell.config.train.num_steps:
            raise Refused(
                f"--every is {every}, and {cell.name} has {cell.config.train.num_steps} steps: look at least once"
            )
    _refuse_other_ablation(ablation, manifest)
    for cell in ablation.cells:
        check(ablation.cell_dir(cell).root, cell.config)
    _refuse_small_disk(ablation, loaded)


def claim_ablation(ablation: Ablation) -> None:
    """Found an ablation in its folder, or go on with it."""
    spec = Manifest.open(ablation.pairs).spec
    identity = {"schema_version": SCHEMA_VERSION, "fingerprint": spec.fingerprint, **_manner(ablation)}
    commit_bytes(ablation.config_file, to_toml(ablation.base).encode(), exclusive=True)
    commit_bytes(ablation.identity_file, (json.dumps(identity, indent=2) + "\n").encode(), exclusive=True)


def differing_keys(ablation: Ablation, there: RunConfig, *, swept: bool) -> list[str]:
    """The keys that an ablation's configurations must have in common and that differ, each in words.

    With `swept` those of a cell, which may differ in the keys of stage two.
    """
    before, after = flat(there.model_dump()), flat(ablation.base.model_dump())
    free = _AXES if ablation.match == "steps" else _AXES - {"pairs.num_pairs"}
    free = _AXES if swept else free
    return [
        f"{key}: there {before[key]}, asked {after[key]}"
        for key, field in leaves(RunConfig)
        if field.json_schema_extra != FREE
        and key not in free
        and not (swept and key.partition(".")[0] in {"student", "train"})
        and before[key] != after[key]
    ]


def _manner(ablation: Ablation) -> Mapping[str, Any]:
    return {"match": ablation.match, "every": ablation.every}


def _refuse_other_ablation(ablation: Ablation, manifest: Manifest) -> None:
    if not ablation.config_file.is_file():
        strange = sorted(entry.name for entry in ablation.root.iterdir()) if ablation.root.is_dir() else []
        if visible := [name for name in strange if not name.startswith(".")]:
            raise Refused(
                f"{ablation.root} is not an ablation (it has no {ablation.config_file.name}) and holds "
                f"{', '.join(visible[:3])}: give another --out"
            )
        return
    differing = differing_keys(ablation, RunDir(ablation.root).read_config(), swept=False)
    there = RunDir(ablation.root).read_json(ablation.identity_file)
    asked = {"fingerprint": manifest.spec.fingerprint, **_manner(ablation)}
    differing += [
        f"{'the pairs' if key == 'fingerprint' else '--' + key}: there {there[key]}, asked {value}"
        for key, value in asked.items()
        if key in there and there[key] != value
    ]
    if differing:
        raise Refused(
            f"{ablation.root} holds another ablation: {'; '.join(differing)}. Give the original values to go on with "
            "it (sizes, seeds, timesteps and swept values may be added), or another --out"
        )


def _refuse_size(cell: Cell, available: int, manifest: Manifest) -> None:
    size, batch_size, spec = cell.size, cell.config.train.batch_size, manifest.spec
    if size > available:
        raise Refused(
            f"--sizes: {size} pairs are asked for, and {manifest.root} holds {available} for training; "
            f"`tokenleap shards extend {manifest.root} --num-pairs {size}` makes the rest"
        )
    # Of captions most come up once.
    num_classes = spec.num_classes if spec.captions is None else 1
    for least, what in ((batch_size, "train.batch_size"), (num_classes, "the number of classes")):
        if size < least:
            raise Refused(f"--sizes: {size} pairs are fewer than {least}, {what}: ask for as many at least")


def _refuse_small_disk(ablation: Ablation, loaded: LoadedTeacher) -> None:
    """Weights, averages and two moments in each checkpoint that stays, and the export: for every cell to come."""
    with on_meta_device():
        network = build_network(loaded.family, loaded.teacher.transformer.config, loaded.teacher.codebook_dim)
    weights = sum(4 * parameter.numel() for parameter in network.parameters())
    decoder = sum(tensor.nbytes for tensor in loaded.teacher.tokenizer.decoder_state().values())
    todo = [cell for cell in ablation.cells if not ablation.is_finished(cell)]
    kept = [cell.config.train.kept_checkpoints for cell in todo]
    # Of each cell its checkpoints and its export, and one checkpoint more while it is written.
    needed = 4 * weights * (sum(kept) + bool(kept)) + len(todo) * (weights + decoder)
    place = next(folder for folder in (ablation.root, *ablation.root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise Refused(
            f"the cells to come ({len(todo)}) take about {needed / 1e6:,.0f} MB, and {place} has {free / 1e6:,.0f} MB "
            "left: free some, choose another --out, or ask for fewer cells"
        )
