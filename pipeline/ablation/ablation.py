"""An ablation, its folder, and the checks before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.protocols import check_evaluation
from distill.student.networks import student_factory
from distill.training.preflight import check_distillation
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.teachers.checkpoints import LoadedTeacher
from generate_pairs.teachers.meta_device import on_meta_device
from pipeline.ablation.cell import CellDir
from pipeline.ablation.grid import Cell, Match, eval_interval
from pipeline.config.keys import leaves
from pipeline.config.run_config import RunConfig, to_toml
from pipeline.run_folder.run_dir import RunDir, check
from shards.core.errors import Refused, join_first
from shards.core.mismatch import Mismatch, format_mismatch, mismatches
from shards.core.settings import FREE
from shards.dataset.manifest import Manifest
from shards.storage.files import commit_bytes
from shards.storage.paths import Location

SCHEMA_VERSION = 1

_AXES = {"pairs.num_pairs", "train.seed", "student.timesteps"}
"""Keys that have their own axis, in which the cells of one folder may differ from its base."""


@dataclass(frozen=True)
class Ablation:
    """An ablation.

    Attributes:
        base: the common configuration of the cells.
        cells: in the order in which they are trained.
        match: whether all cells have the same number of steps, or of passes over their pairs.
        every: steps between evaluations; None for a tenth of a cell's steps.
    """

    root: Path
    pairs: Location
    base: RunConfig
    cells: tuple[Cell, ...]
    match: Match
    every: int | None

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
        """The folder of a cell."""
        return CellDir(self.cells_folder / cell.name)

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell is completely trained."""
        return self.cell_dir(cell).is_finished(cell.config)


def refuse_ablation(ablation: Ablation, loaded: LoadedTeacher) -> None:
    """Check an ablation before any work; writes nothing.

    Raises:
        Refused: a size is not available or too small, settings do not fit the teacher, the folder contains another
            ablation, or the disk is too small.
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
        interval, num_steps = eval_interval(cell.config, ablation.every), cell.config.train.num_steps
        if interval > num_steps:
            raise Refused(f"--every is {interval}, and {cell.name} has {num_steps} steps: use at most {num_steps}")
    _refuse_other_ablation(ablation, manifest)
    for cell in ablation.cells:
        check(ablation.cell_dir(cell).root, cell.config)
    _refuse_small_disk(ablation, loaded)


def claim_ablation(ablation: Ablation) -> None:
    """Create an ablation in its folder, or resume it."""
    spec = Manifest.open(ablation.pairs).spec
    identity = {"schema_version": SCHEMA_VERSION, "fingerprint": spec.fingerprint, **_options(ablation)}
    commit_bytes(RunDir(ablation.root).config, to_toml(ablation.base).encode(), exclusive=True)
    commit_bytes(ablation.identity_file, (json.dumps(identity, indent=2) + "\n").encode(), exclusive=True)


def differing_keys(ablation: Ablation, stored: RunConfig, *, swept: bool) -> list[str]:
    """Describe each key in which a stored configuration differs from the ablation's although it must not.

    `stored` is the configuration of the folder or, if `swept`, of a cell, which may differ in the keys of stage two.
    """
    free = {key for key, field in leaves(RunConfig) if field.json_schema_extra == FREE}
    free |= _AXES if swept or ablation.match == "steps" else _AXES - {"pairs.num_pairs"}
    return [
        format_mismatch(mismatch)
        for mismatch in mismatches(stored.model_dump(), ablation.base.model_dump())
        if mismatch.key not in free and not (swept and mismatch.key.partition(".")[0] in {"student", "train"})
    ]


def _options(ablation: Ablation) -> Mapping[str, Any]:
    return {"match": ablation.match, "every": ablation.every}


def _refuse_other_ablation(ablation: Ablation, manifest: Manifest) -> None:
    run_dir = RunDir(ablation.root)
    if not run_dir.config.is_file():
        entries = sorted(entry.name for entry in ablation.root.iterdir()) if ablation.root.is_dir() else []
        if visible := [name for name in entries if not name.startswith(".")]:
            raise Refused(
                f"{ablation.root} is not an ablation (it has no {run_dir.config.name}) and contains "
                f"{', '.join(visible[:3])}: give another --out"
            )
        return
    differing = differing_keys(ablation, run_dir.read_config(), swept=False)
    stored = run_dir.read_json(ablation.identity_file)
    requested = {"fingerprint": manifest.spec.fingerprint, **_options(ablation)}
    differing += [
        format_mismatch(Mismatch("the pairs" if key == "fingerprint" else f"--{key}", stored[key], value))
        for key, value in requested.items()
        if key in stored and stored[key] != value
    ]
    if differing:
        raise Refused(
            f"{ablation.root} contains another ablation: {join_first(differing)}. Give the stored values to resume it "
            "(you may add sizes, seeds, timesteps and swept values), or another --out"
        )


def _refuse_size(cell: Cell, available: int, manifest: Manifest) -> None:
    size, batch_size, spec = cell.size, cell.config.train.batch_size, manifest.spec
    if size > available:
        raise Refused(
            f"--sizes: {size} pairs requested, but {manifest.root} contains {available} for training; "
            f"`tokenleap shards extend {manifest.root} --num-pairs {size}` generates the rest"
        )
    # Most captions occur once.
    num_classes = spec.num_classes if spec.captions is None else 1
    for minimum, name in ((batch_size, "train.batch_size"), (num_classes, "the number of classes")):
        if size < minimum:
            raise Refused(f"--sizes: {size} pairs are fewer than {minimum}, {name}; use at least {minimum}")


def _refuse_small_disk(ablation: Ablation, loaded: LoadedTeacher) -> None:
    """Check the free space against the checkpoints and exports of the unfinished cells.

    A checkpoint contains four tensors for each weight: the weight, its average and two moments.
    """
    with on_meta_device():
        network = student_factory(loaded.family)(loaded.teacher.transformer.config, loaded.teacher.codebook_dim)
    weights = sum(4 * parameter.numel() for parameter in network.parameters())
    decoder = sum(tensor.nbytes for tensor in loaded.teacher.tokenizer.decoder_state().values())
    todo = [cell for cell in ablation.cells if not ablation.is_finished(cell)]
    num_checkpoints = sum(cell.config.train.kept_checkpoints for cell in todo)
    # One checkpoint more exists while it is written.
    needed = 4 * weights * (num_checkpoints + bool(num_checkpoints)) + len(todo) * (weights + decoder)
    folder = next(parent for parent in (ablation.root, *ablation.root.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Refused(
            f"--out: {len(todo)} unfinished cells need about {needed / 1e6:,.0f} MB, and {folder} has "
            f"{free / 1e6:,.0f} MB left: free some space, choose another --out, or request fewer cells"
        )
