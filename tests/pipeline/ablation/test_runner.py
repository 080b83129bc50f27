"""The ablation end to end on a small random teacher: its numbers, resuming, and refusals."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner, Result

import pipeline.ablation.cost
import pipeline.ablation.runner
from distill.training.distributed import World
from distill.training.metrics import read_metrics
from distill.training.preflight import checked_manifest
from distill.training.state import Training
from pipeline.ablation.cell import CellDir
from pipeline.cli.main import main
from pipeline.config.run_config import changed, compose
from shards.core.errors import Failed

REPOSITORY = Path(__file__).resolve().parents[3]
PRESET = """
[teacher]
name = "{teacher}"
guidance_scale = 1.5
[pairs]
num_pairs = 96
pairs_per_shard = 32
batch_size = 16
seed = 3
solver_steps = 16
[student]
timesteps = [0, 2]
split = 16
[train]
num_steps = 12
batch_size = 16
warmup_steps = 4
checkpoint_interval = 5
log_interval = 4
[evaluation]
num_images = 100
"""

pytestmark = pytest.mark.parametrize("family", ["llamagen"], indirect=True)

Ablate = Callable[..., Result]
Refuse = Callable[..., None]


@pytest.fixture(scope="module")
def preset(teacher_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(PRESET.format(teacher=teacher_path))
    return path


@pytest.fixture(scope="module")
def pairs(preset: Path) -> Path:
    root = preset.parent / "pairs"
    generated = tokenleap("generate", preset, "--out", root, "--workers", 0)
    assert generated.exit_code == 0, generated.output
    return root


def tokenleap(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def ablate(preset: Path, pairs: Path) -> Ablate:
    """Calls the command in this process; `options` override the defaults."""

    def call(out: Path, *options: object, sizes: str = "32,64") -> Result:
        fixed = ("--pairs", pairs, "--sizes", sizes, "--every", 4, "--workers", 0, "--out", out)
        return tokenleap("ablate", preset, *fixed, *options)

    return call


@pytest.fixture(scope="module")
def finished(ablate: Ablate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ablation with two sizes and two seeds; tests must not change it."""
    out = tmp_path_factory.mktemp("ablation") / "finished"
    done = ablate(out, "--seeds", 2)
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def ablation(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "ablation"))


@pytest.fixture
def refuse(ablate: Ablate) -> Refuse:
    """Checks that the command is refused with a message."""

    def check(message: str, out: Path, *options: object, sizes: str = "32,64") -> None:
        refused = ablate(out, *options, sizes=sizes)
        assert (refused.exit_code, message in refused.output) == (2, True), refused.output
        assert "Traceback" not in refused.output

    return check


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(out / "ablation.parquet").to_pylist()


def modification_times(out: Path) -> dict[str, int]:
    """Modification time of each file of each cell."""
    cells = out / "cells"
    return {str(path.relative_to(cells)): path.stat().st_mtime_ns for path in cells.rglob("*") if path.is_file()}


def cell_names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "cells").iterdir())


def test_the_table_contains_every_evaluation_of_every_cell(finished: Path) -> None:
    schema = pyarrow.parquet.read_schema(finished / "ablation.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        **dict.fromkeys(("cell", "timesteps", "method", "metric", "protocol"), "string"),
        **dict.fromkeys(("size", "seed", "step", "pairs_seen"), "int64"),
        **dict.fromkeys(("epoch", "value"), "double"),
    }
    rows = rows_of(finished)
    evaluations = {(row["size"], row["seed"], row["step"]): (row["epoch"], row["pairs_seen"]) for row in rows}
    assert evaluations == {
        (size, seed, step): (step * 16 / size, step * 16) for size in (32, 64) for seed in (0, 1) for step in (4, 8, 12)
    }
    measured = {(row["method"], row["metric"]) for row in rows}
    scores = ("frechet_distance", "inception_score", "precision", "recall", "class_accuracy")
    assert measured == {
        *((None, f"{prefix}_{metric}") for prefix in ("heldout", "train") for metric in ("token_loss", "token_match")),
        *((f"student-{count}", score) for count in (1, 2) for score in scores),
    }
    assert len(rows) == len(evaluations) * len(measured)
    assert {row["timesteps"] for row in rows} == {"0,2"}
    assert {row["protocol"] for row in rows if row["method"]} == {"digits, 100 images, seed 0"}
    pair_protocols = {row["protocol"] for row in rows if not row["method"]}
    assert pair_protocols == {"32 held-out pairs", "32 training pairs"}


def test_pandas_reads_the_table(finished: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(finished / "ablation.parquet")
    assert list(frame.columns) == pyarrow.parquet.read_schema(finished / "ablation.parquet").names
    rows = rows_of(finished)
    for name in ("cell", "size", "seed", "step", "epoch", "pairs_seen", "metric", "value"):
        assert frame[name].tolist() == [row[name] for row in rows]
    assert frame["method"].isna().tolist() == [row["method"] is None for row in rows]


def test_the_heldout_numbers_equal_those_of_the_training_log(finished: Path) -> None:
    for name in cell_names(finished):
        log = {row["step"]: row for row in read_metrics(finished / "cells" / name / "student" / "metrics").to_pylist()}
        for row in rows_of(finished):
            if row["cell"] == name and row["metric"].startswith("heldout"):
                assert row["value"] == log[row["step"]][row["metric"]]


def test_the_report_is_written(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        *("ablation.json", "ablation.parquet", "cells", "config.toml", "figures", "report.html", "table.csv", "table.md")
    }
    assert (finished / "figures" / "size--heldout_token_match.svg").is_file()
    sentence = "With 5 sizes or more, a power law can predict the effect of more pairs; this ablation has 2."
    assert sentence in (finished / "report.html").read_text()
    assert (finished / "table.md").read_text().splitlines()[4:] == ["", f"- {sentence}"]


def test_cells_of_a_seed_have_equal_initial_weights_and_heldout_pairs(preset: Path, pairs: Path) -> None:
    config = compose(str(preset))

    def training(size: int, seed: int) -> Training:
        distill = changed(config, {"train.seed": seed}, "here").distill
        return Training(distill, config.teacher.name, checked_manifest(distill, pairs), size, World())

    small, large, other = training(32, 0), training(64, 0), training(64, 1)
    assert all(map(torch.equal, small.parameters, large.parameters))
    assert not all(map(torch.equal, large.parameters, other.parameters))
    heldout = [set(run.heldout_batch.index_B.tolist()) for run in (small, large, other)]
    assert heldout == [set(range(32))] * 3
    # A smaller set is the beginning of a larger one, and neither contains a held-out pair.
    views = [range(run.view.first, run.view.first + run.view.size) for run in (small, large)]
    assert views == [range(32, 64), range(32, 96)]


def test_finished_cells_do_not_run_again(ablate: Ablate, ablation: Path, monkeypatch) -> None:
    monkeypatch.setattr(pipeline.ablation.runner, "run_cell", lambda *_, **__: pytest.fail("a cell was trained"))
    table, before = (ablation / "ablation.parquet").read_bytes(), modification_times(ablation)
    (ablation / "ablation.parquet").unlink()
    assert ablate(ablation, "--seeds", 2).exit_code == 0
    # With fewer sizes the table keeps the other finished cells.
    assert ablate(ablation, sizes="32").exit_code == 0
    assert (ablation / "ablation.parquet").read_bytes() == table
    assert modification_times(ablation) == before


@pytest.mark.parametrize(
    ("options", "sizes", "added"),
    [
        (("--seeds", 2), "32,64,96", ["size-96_timesteps-0-2_seed-0", "size-96_timesteps-0-2_seed-1"]),
        pytest.param(("--seeds", 3), "32", ["size-32_timesteps-0-2_seed-2"], marks=pytest.mark.slow),
        pytest.param(
            ("--timesteps", "0,2", "--timesteps", "0,8"), "32", ["size-32_timesteps-0-8_seed-0"], marks=pytest.mark.slow
        ),
        pytest.param(
            ("--grid", "train.learning_rate=1e-3,3e-3"),
            "32",
            ["size-32_timesteps-0-2_seed-0_train.learning_rate-0.003"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_only_added_cells_are_trained(
    ablate: Ablate, ablation: Path, options: tuple[object, ...], sizes: str, added: list[str]
) -> None:
    before, names = modification_times(ablation), cell_names(ablation)
    assert ablate(ablation, *options, sizes=sizes).exit_code == 0
    assert cell_names(ablation) == sorted([*names, *added])
    assert before.items() <= modification_times(ablation).items()
    rows = rows_of(ablation)
    assert {row["cell"] for row in rows} == {*names, *added}
    axes = ("timesteps", "train.learning_rate", "size", "seed", "step")
    keys = [tuple(row[axis] for axis in axes if axis in row) for row in rows]
    assert keys == sorted(keys)
    if "--grid" in options:
        rates = {row["cell"]: row["train.learning_rate"] for row in rows}
        assert rates == dict.fromkeys(names, "0.001") | dict.fromkeys(added, "0.003")


def test_a_cell_is_finished_only_with_the_student_that_was_evaluated(
    ablate: Ablate, ablation: Path, finished: Path
) -> None:
    cell = CellDir(ablation / "cells" / "size-32_timesteps-0-2_seed-0")
    config = cell.read_config()
    assert cell.is_finished(config)
    assert not cell.is_finished(changed(config, {"train.num_steps": 24}, "here"))
    exported = cell.student / "config.json"
    exported.write_text(json.dumps(json.loads(exported.read_text()) | {"student_sha256": "another"}))
    assert not cell.is_finished(config)
    shutil.rmtree(cell.student)
    assert not cell.is_finished(config)
    assert ablate(ablation, "--seeds", 2).exit_code == 0
    assert cell.is_finished(config)
    assert (ablation / "ablation.parquet").read_bytes() == (finished / "ablation.parquet").read_bytes()


def test_matching_epochs_gives_equal_epochs_in_the_table(ablate: Ablate, refuse: Refuse, tmp_path: Path) -> None:
    out = tmp_path / "a"
    assert ablate(out, "--match", "epochs", sizes="32").exit_code == 0
    before = modification_times(out)
    assert ablate(out, "--match", "epochs").exit_code == 0
    assert before.items() <= modification_times(out).items()
    evaluations = {(row["size"], row["step"], row["epoch"], row["pairs_seen"]) for row in rows_of(out)}
    assert evaluations == {(32, 4, 2.0, 64), (64, 4, 1.0, 64), (64, 8, 2.0, 128)}
    refuse("pairs.num_pairs: found 96, requested 64", out, "--match", "epochs", "--set", "pairs.num_pairs=64")


@pytest.mark.slow
def test_a_failed_cell_does_not_affect_the_others_and_is_tried_again(
    ablate: Ablate, finished: Path, tmp_path: Path, monkeypatch
) -> None:
    run_cell, out = pipeline.ablation.runner.run_cell, tmp_path / "a"

    def failing(config, pairs, root, eval_interval, **rest) -> None:
        if root.name == "size-32_timesteps-0-2_seed-0":
            raise Failed("the disk is on fire")
        run_cell(config, pairs, root, eval_interval, **rest)

    monkeypatch.setattr(pipeline.ablation.runner, "run_cell", failing)
    failed = ablate(out, "--seeds", 2)
    assert failed.exit_code == 1
    assert "1 of 4 cells failed: size-32_timesteps-0-2_seed-0: the disk is on fire" in failed.output
    assert {row["cell"] for row in rows_of(out)} == set(cell_names(finished)) - {"size-32_timesteps-0-2_seed-0"}
    assert "the disk is on fire" in (out / "report.html").read_text()
    monkeypatch.setattr(pipeline.ablation.runner, "run_cell", run_cell)
    assert ablate(out, "--seeds", 2).exit_code == 0
    assert (out / "ablation.parquet").read_bytes() == (finished / "ablation.parquet").read_bytes()
    assert "the disk is on fire" not in (out / "report.html").read_text()


def test_a_cell_is_a_run_folder(ablation: Path, pairs: Path) -> None:
    cell = ablation / "cells" / "size-64_timesteps-0-2_seed-1"
    assert (cell / "pairs.location").read_text() == f"{pairs.absolute()}\n"
    for arguments in (
        ("report", cell),
        ("sample", cell / "student", "--steps", 2, "--out", ablation / "x.png"),
        ("run", cell / "config.toml", "--out", cell, "--dry-run"),
        ("evaluate", cell),
    ):
        done = tokenleap(*arguments)
        assert done.exit_code == 0, done.output
    rows = json.loads((cell / "evaluation.json").read_text())["rows"]
    evaluated = {(row["method"], "frechet_distance"): row["frechet_distance"] for row in rows}
    for row in rows_of(ablation):
        if row["cell"] == cell.name and row["step"] == 12 and row["metric"] == "frechet_distance":
            assert row["value"] == pytest.approx(evaluated[row["method"], "frechet_distance"], rel=1e-4)


def test_a_dry_run_sums_the_remaining_cost_of_the_cells(
    ablate: Ablate, ablation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step costs one second and an evaluation two. One cell has trained ten steps, and five have not started.

    The smallest size equals the batch size, which is allowed.
    """
    cost = pipeline.ablation.cost.CellCost(1.0, 2.0)
    monkeypatch.setattr(pipeline.ablation.cost, "measured", lambda *_: cost)
    cell = ablation / "cells" / "size-64_timesteps-0-2_seed-0"
    (cell / "finished.json").unlink()
    for path in (cell / "student" / "checkpoints").glob("step-000012.*"):
        path.unlink()
    shutil.rmtree(ablation / "cells" / "size-32_timesteps-0-2_seed-1")
    lines = ablate(ablation, "--seeds", 2, "--dry-run", sizes="16,32,64,96").output.splitlines()[-9:]
    assert lines == [
        "size-16_timesteps-0-2_seed-0  12 steps, 12.0 epochs, 3 evaluations: about 18 s",
        "size-32_timesteps-0-2_seed-0  12 steps, 6.0 epochs, 3 evaluations: done",
        "size-64_timesteps-0-2_seed-0  12 steps, 3.0 epochs, 3 evaluations: about 4.0 s",
        "size-96_timesteps-0-2_seed-0  12 steps, 2.0 epochs, 3 evaluations: about 18 s",
        "size-16_timesteps-0-2_seed-1  12 steps, 12.0 epochs, 3 evaluations: about 18 s",
        "size-32_timesteps-0-2_seed-1  12 steps, 6.0 epochs, 3 evaluations: about 18 s",
        "size-64_timesteps-0-2_seed-1  12 steps, 3.0 epochs, 3 evaluations: done",
        "size-96_timesteps-0-2_seed-1  12 steps, 2.0 epochs, 3 evaluations: about 18 s",
        "8 cells, 2 done; about 1 min 34 s left, one after another, as measured on this machine",
    ]


def test_a_dry_run_measures_the_cost_and_writes_nothing(ablate: Ablate, ablation: Path, tmp_path: Path) -> None:
    before = modification_times(ablation)
    for out, done in ((ablation, 4), (tmp_path / "new", 0)):
        lines = ablate(out, "--seeds", 2, "--dry-run", sizes="32,64,96").output.splitlines()
        assert sum(": done" in line for line in lines) == done
        assert sum(": about " in line for line in lines) == 6 - done
        assert lines[-1].startswith(f"6 cells, {done} done; ")
    assert modification_times(ablation) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-steps", 24), "train.num_steps: found 12, requested 24"),
        (("--set", "train.learning_rate=0.5"), "train.learning_rate: found 0.001, requested 0.5"),
        (("--set", "evaluation.seed=1"), "evaluation.seed: found 0, requested 1"),
        (("--every", 3), "--every: found 4, requested 3"),
        (("--match", "epochs"), "--match: found steps, requested epochs"),
    ],
)
def test_another_ablation_is_refused_with_the_differing_keys(
    refuse: Refuse, ablation: Path, options: tuple[object, ...], message: str
) -> None:
    before = modification_times(ablation)
    refuse(message, ablation, *options)
    assert modification_times(ablation) == before


def test_other_pairs_are_refused(refuse: Refuse, preset: Path, ablation: Path, tmp_path: Path) -> None:
    other, setting = tmp_path / "pairs", ("--set", "pairs.solver_steps=8")
    assert tokenleap("generate", preset, *setting, "--out", other, "--workers", 0).exit_code == 0
    before = modification_times(ablation)
    refuse("pairs.solver_steps: found 16, requested 8; the pairs: found ", ablation, *setting, "--pairs", other)
    # The fingerprint also detects differences outside the settings, such as other weights of a teacher of the same name.
    identity = ablation / "ablation.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {"fingerprint": "another"}))
    refuse("the pairs: found another, requested ", ablation)
    assert modification_times(ablation) == before


def test_moved_pairs_are_accepted(ablate: Ablate, pairs: Path, ablation: Path, finished: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(pairs, tmp_path / "moved"))
    shutil.rmtree(ablation / "cells" / "size-32_timesteps-0-2_seed-0")
    assert ablate(ablation, "--seeds", 2, "--pairs", moved).exit_code == 0
    assert (ablation / "ablation.parquet").read_bytes() == (finished / "ablation.parquet").read_bytes()


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ((), "97", "contains 96 for training; `tokenleap shards extend"),
        ((), "15", "15 pairs are fewer than 16, train.batch_size"),
        (("--set", "train.batch_size=4"), "9", "9 pairs are fewer than 10, the number of classes"),
        (("--timesteps", "0,16"), "32", "student.timesteps: 16 is not below 16, the teacher's AR steps"),
        (("--timesteps", "2,4"), "32", "timesteps must ascend from 0"),
        (("--timesteps", "0,2", "--timesteps", "0,2"), "32", "a set is given twice"),
        (("--grid", "train.ema_decay=0.9", "--grid", "train.ema_decay=0.8"), "32", "is given twice"),
        (("--grid", "student.split=20"), "32", "student.split: 20 is more than 16"),
        (("--set", "pairs.seed=4"), "32", "describes other pairs: seed: found 3, requested 4"),
        (("--every", 13), "32", "--every is 13, and size-32_timesteps-0-2_seed-0 has 12 steps"),
        (("--seeds", 0), "32", "0 is not in the range"),
        (("--workers", -1), "32", "-1 is not in the range"),
        ((), "32,32", "--sizes names 32 twice"),
        ((), "32_", "--sizes: '32_' is neither"),
        ((), "0", "pairs.num_pairs cannot be 0"),
        (("--grid", "teacher.top_k=1,2"), "32", "--grid teacher.top_k: it changes the pairs"),
        (("--grid", "evaluation.seed=1,2"), "32", "all cells use the same evaluation"),
        (("--grid", "train.learning_rat=1,2"), "32", "the nearest is train.learning_rate"),
        (("--pairs", "nowhere"), "32", "nowhere is not a pair data set"),
    ],
)
def test_invalid_ablations_are_refused_before_any_work(
    refuse: Refuse, tmp_path: Path, options: tuple[object, ...], sizes: str, message: str
) -> None:
    refuse(message, tmp_path / "a", *options, sizes=sizes)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("curve/00000004.json", "{", "00000004.json is damaged: delete "),
        ("curve/00000004.json", "[3]", "00000004.json is damaged: delete "),
        ("curve/00000004.json", '{"value": 3}', "00000004.json is damaged: delete "),
        ("finished.json", "{", "finished.json is damaged: delete it and run the same command again"),
        ("config.toml", "x = [", "config.toml is not TOML"),
    ],
)
def test_a_damaged_cell_is_named(refuse: Refuse, ablation: Path, name: str, content: str, message: str) -> None:
    cell = ablation / "cells" / "size-32_timesteps-0-2_seed-0"
    (cell / name).write_text(content)
    table, before = (ablation / "ablation.parquet").read_bytes(), modification_times(ablation)
    refuse(message, ablation, "--seeds", 2)
    refuse(str(cell), ablation, "--seeds", 2)
    assert (ablation / "ablation.parquet").read_bytes() == table
    assert modification_times(ablation) == before


def test_a_grid_too_large_for_the_disk_is_refused(refuse: Refuse, tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 10**6))
    for message in ("2 unfinished cells need about ", "has 1 MB left"):
        refuse(message, tmp_path / "a")


def test_a_folder_that_cannot_be_written_to_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("thesis")
    for out, message in (("file", "is a file"), ("file/sub", "cannot write ")):
        refuse(message, tmp_path / out)
    assert (tmp_path / "file").read_text() == "thesis"


def test_a_folder_with_other_content_is_refused(refuse: Refuse, ablation: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    refuse("is not an ablation", tmp_path / "other")
    foreign = ablation / "cells" / "size-32_timesteps-0-2_seed-7"
    shutil.copytree(ablation / "cells" / "size-32_timesteps-0-2_seed-0", foreign)
    config = (foreign / "config.toml").read_text()
    (foreign / "config.toml").write_text(config.replace("num_images = 100", "num_images = 200"))
    refuse("seed-7 is a cell of another ablation (evaluation.num_images: found 200, requested 100)", ablation)


def command(preset: Path, pairs: Path, out: Path, *options: str) -> list[str]:
    arguments = ("ablate", preset, "--pairs", pairs, "--sizes", "32,64", "--seeds", 2, "--every", 4, "--out", out)
    return [sys.executable, "-m", "pipeline.cli", *map(str, arguments), *options]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kills"), [(signal.SIGKILL, 3), (signal.SIGTERM, 1)])
def test_a_killed_ablation_resumes_to_equal_bytes(
    ablate: Ablate, preset: Path, pairs: Path, finished: Path, tmp_path: Path, number: signal.Signals, kills: int
) -> None:
    """Each kill happens after some further evaluations."""
    out, chosen = tmp_path / "a", random.Random(int(number))
    for kill in range(kills):
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                command(preset, pairs, out, "--workers", "0"), env=ENVIRONMENT, stdout=log, stderr=log
            )
        wanted, deadline = 3 * kill + chosen.randint(1, 3), time.monotonic() + 60
        while len(list(out.glob("cells/*/curve/[!.]*"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None, (tmp_path / "log").read_text()
        process.send_signal(number)
        assert process.wait(60) == (-9 if number == signal.SIGKILL else 143), (tmp_path / "log").read_text()
    assert not (out / "ablation.parquet").exists()
    done = ablate(out, "--seeds", 2)
    assert done.exit_code == 0, done.output
    assert (out / "ablation.parquet").read_bytes() == (finished / "ablation.parquet").read_bytes()


@pytest.mark.slow
def test_two_workers_give_equal_bytes_after_a_failure(preset: Path, pairs: Path, finished: Path, tmp_path: Path) -> None:
    """The first cell has a file in place of the folder of its curve."""
    out, name = tmp_path / "a", "size-32_timesteps-0-2_seed-0"
    curve = out / "cells" / name / "curve"
    curve.parent.mkdir(parents=True)
    shutil.copy(finished / "cells" / name / "config.toml", curve.parent)
    shutil.copy(finished / "config.toml", out)
    curve.touch()
    two_workers = command(preset, pairs, out, "--workers", "2")
    failed = subprocess.run(two_workers, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert failed.returncode == 1
    assert f"1 of 4 cells failed: {name}: cannot write {curve}" in failed.stderr
    assert {row["cell"] for row in rows_of(out)} == set(cell_names(finished)) - {name}
    curve.unlink()
    subprocess.run(two_workers, env=ENVIRONMENT, check=True, timeout=240)
    assert (out / "ablation.parquet").read_bytes() == (finished / "ablation.parquet").read_bytes()
