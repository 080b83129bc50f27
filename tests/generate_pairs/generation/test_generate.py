"""Stage one's contract: the same bytes however they are made, and nothing made twice or lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import distributed
import pytest
import torch

from generate_pairs.cluster.open_pool import pool
from generate_pairs.config import ClusterConfig, GenerateConfig
from generate_pairs.generation import shard_jobs as making
from generate_pairs.generation import worker
from generate_pairs.generation.generate import STALE_SECONDS, generate
from generate_pairs.generation.plan import plan_generation, refuse_fewer_pairs
from generate_pairs.generation.repair import repair
from generate_pairs.generation.work_units import work_unit
from generate_pairs.teachers.checkpoints import load_teacher, save_teacher
from shards.core.errors import Failed, Refused, Stopped
from shards.dataset.manifest import Manifest
from shards.dataset.verify import verify

REPORT = lambda *_: None  # noqa: E731
NEVER = lambda: False  # noqa: E731


Configs = Callable[..., GenerateConfig]

LLAMAGEN = pytest.mark.parametrize("family", ["llamagen"], indirect=True)
"""For what does not depend on the family, and takes long."""


def shard_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "shards").glob("[!.]*"))}


def row_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "manifest").glob("[!.]*"))}


@LLAMAGEN
@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_do_not_depend_on_the_workers(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path, workers: int
) -> None:
    generate(generate_config(teacher_path), tmp_path, workers=workers, report=REPORT, should_stop=NEVER)
    assert shard_files(tmp_path) == shard_files(pairs_root)
    assert verify(tmp_path) == []


def test_a_set_of_fewer_pairs_is_the_beginning_of_a_larger_one(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    generate(
        generate_config(teacher_path, num_pairs=20), tmp_path, workers=0, report=REPORT, should_stop=NEVER
    )
    small = shard_files(tmp_path)
    rows = row_files(tmp_path)
    assert len(small) == 2
    summary = generate(generate_config(teacher_path), tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    assert summary.num_shards == 2
    assert shard_files(tmp_path) == shard_files(pairs_root)
    assert {name: row_files(tmp_path)[name] for name in rows} == rows
    assert small.items() <= shard_files(tmp_path).items()


def test_finished_shards_are_not_made_again(
    pairs_root: Path, teacher_path: Path, generate_config: Configs
) -> None:
    before = row_files(pairs_root)
    summary = generate(generate_config(teacher_path), pairs_root, workers=0, report=REPORT, should_stop=NEVER)
    assert summary.num_shards == 0
    assert row_files(pairs_root) == before


def test_asked_to_stop_it_keeps_what_is_done_and_goes_on(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    answers = iter([False, True])
    with pytest.raises(Stopped, match="1 of 4 missing shards"):
        generate(
            generate_config(teacher_path),
            tmp_path,
            workers=0,
            report=REPORT,
            should_stop=lambda: next(answers),
        )
    assert len(Manifest.open(tmp_path).rows) == 1
    generate(generate_config(teacher_path), tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    assert shard_files(tmp_path) == shard_files(pairs_root)


@pytest.mark.parametrize(
    ("family", "workers"),
    [
        ("llamagen", 0),
        pytest.param("llamagen", 2, marks=pytest.mark.slow),
        pytest.param("var", 0, marks=pytest.mark.slow),
    ],
    indirect=["family"],
)
def test_killed_at_any_moment_it_completes_what_is_missing(
    pairs_root: Path, teacher_path: Path, tmp_path: Path, workers: int
) -> None:
    """SIGKILL the driver, three times, each a little later; rows that were committed stay as they are."""
    (tmp_path / "preset.toml").write_text(
        f'[teacher]\nname = "{teacher_path}"\nguidance_scale = 1.5\n[pairs]\nnum_pairs = 96\n'
        "pairs_per_shard = 32\nbatch_size = 16\nseed = 3\nsolver_steps = 16\n"
    )
    arguments = ["generate", "preset.toml", "--out", "pairs", "--workers", str(workers)]
    root = tmp_path / "pairs"
    rows: dict[str, bytes] = {}
    moments: list[Callable[[], bool]] = [
        lambda: (root / "dataset.json").is_file(),
        lambda: len(row_files(root)) >= 1,
        lambda: len(row_files(root)) >= 2,
    ]
    for moment in moments:
        process = started(arguments, tmp_path)
        wait_until(moment, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert rows.items() <= row_files(root).items()
        rows = row_files(root)
    finished = started(arguments, tmp_path)
    _, told = finished.communicate(timeout=120)
    assert finished.returncode == 0, told
    assert rows.items() <= row_files(root).items()
    assert shard_files(root) == shard_files(pairs_root)
    assert verify(root) == []


def started(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """The command line in its own process group, as a terminal would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a moment in the life of a process that lives on after it."""
    deadline = time.monotonic() + 60
    while not is_true():
        if process.poll() is not None:
            pytest.fail(f"it ended before the moment came: {process.communicate()[1]}")
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"the moment did not come: {process.communicate()[1]}")
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]


def test_pairs_of_other_settings_are_refused_by_name(
    pairs_root: Path, teacher_path: Path, generate_config: Configs
) -> None:
    before = shard_files(pairs_root)
    with pytest.raises(Refused, match=r"guidance_scale: 1\.5 -> 2\.5"):
        generate(
            generate_config(teacher_path, guidance_scale=2.5),
            pairs_root,
            workers=0,
            report=REPORT,
            should_stop=NEVER,
        )
    with pytest.raises(Refused, match="seed: 3 -> 4"):
        plan_generation(generate_config(teacher_path, seed=4), pairs_root)
    assert shard_files(pairs_root) == before


def test_old_temporary_files_are_cleared_away_and_young_ones_stay(
    pairs_root: Path, teacher_path: Path, generate_config: Configs
) -> None:
    old, young = time.time() - STALE_SECONDS - 60, time.time()
    left = {
        pairs_root / folder / f".{name}.tmp": age
        for folder in ("", "shards", "manifest", "text_features")
        for name, age in (("old", old), ("young", young))
    }
    for path, age in left.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half of")
        os.utime(path, (age, age))
    generate(generate_config(teacher_path), pairs_root, workers=0, report=REPORT, should_stop=NEVER)
    assert {path for path in left if path.exists()} == {path for path in left if path.name == ".young.tmp"}
    for path in left:
        path.unlink(missing_ok=True)
    (pairs_root / "text_features").rmdir()


def test_planning_writes_nothing(teacher_path: Path, generate_config: Configs, tmp_path: Path) -> None:
    plan = plan_generation(generate_config(teacher_path), tmp_path / "pairs")
    assert plan.missing == (0, 1, 2, 3)
    assert plan.num_training_pairs == 96
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_another_driver_committed_costs_no_computing(
    teacher_path: Path, generate_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = generate_config(teacher_path)
    plan = plan_generation(config, tmp_path)
    generate(config, tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    rows = row_files(tmp_path)
    monkeypatch.setattr(worker, "pair_maker", lambda *_: pytest.fail("it computes"))
    unit = work_unit(2, 32, 16)
    row = worker.generate_shard(tmp_path, plan.spec, config.teacher, unit)
    assert row == Manifest.open(tmp_path).rows[2]
    assert row_files(tmp_path) == rows
    with pytest.raises(pytest.fail.Exception, match="it computes"):
        worker.generate_shard(tmp_path, plan.spec, config.teacher, replace(unit, replaces=True))


def breaking(error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets shard 2 break with this error; returns a list that fills with the shards that are tried."""
    real, tried = making.generate_shard, []

    def generate_shard(root, spec, teacher, unit, device):
        tried.append(unit.shard_index)
        if unit.shard_index == 2:
            raise error
        return real(root, spec, teacher, unit, device)

    monkeypatch.setattr(making, "generate_shard", generate_shard)
    return tried


def test_a_mishap_of_one_shard_does_not_stop_the_others(
    teacher_path: Path, generate_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(RuntimeError("out of memory"), monkeypatch)
    with pytest.raises(Failed, match=r"1 of 4 shards .* could not be made.*out of memory"):
        generate(generate_config(teacher_path), tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    assert Manifest.open(tmp_path).missing(4) == (2,)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (Failed("no space left there"), Failed, "no space left there. 2 of 4 missing shards in"),
        (OSError(28, "No space left on device"), Failed, "No space left on device. 2 of 4 missing"),
        (Refused("cannot write"), Refused, "^cannot write$"),
    ],
    ids=["full disk", "full disk, told by the system", "no permission"],
)
def test_what_would_befall_every_shard_ends_the_work(
    teacher_path: Path,
    generate_config: Configs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    message: str,
) -> None:
    tried = breaking(error, monkeypatch)
    with pytest.raises(kind, match=message):
        generate(generate_config(teacher_path), tmp_path, workers=0, report=REPORT, should_stop=NEVER)
    assert tried == [0, 1, 2]


def test_a_worker_that_is_killed_while_it_starts_is_no_mistake_of_tokenleap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dying(**_: object) -> None:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(distributed, "SpecCluster", dying)
    running = pool(ClusterConfig(), 1, print)
    with pytest.raises(Failed, match=r"Nanny failed to start\. Give the same command again"), running:
        pass


@LLAMAGEN
def test_a_refusal_inside_a_worker_stays_one(
    teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    (tmp_path / "shards").write_text("where a folder should be")
    with pytest.raises(Refused, match=r"cannot write .*pairs-00000"):
        generate(generate_config(teacher_path), tmp_path, workers=1, report=REPORT, should_stop=NEVER)


def test_what_is_done_counts_as_done(teacher_path: Path, generate_config: Configs, tmp_path: Path) -> None:
    generate(
        generate_config(teacher_path, num_pairs=32), tmp_path, workers=0, report=REPORT, should_stop=NEVER
    )
    told: list[tuple[int, int, str]] = []
    generate(
        generate_config(teacher_path),
        tmp_path,
        workers=0,
        report=lambda *progress: told.append(progress),
        should_stop=NEVER,
    )
    assert told == [(64, 128, ""), (96, 128, ""), (128, 128, "")]


def test_a_teacher_under_another_name_makes_the_same_pairs(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(teacher_path.read_bytes())
    plan = plan_generation(generate_config(renamed), pairs_root)
    assert plan.missing == ()
    assert plan.spec.lineage["teacher"]["name"] == "renamed"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": {"name": "tiny-random/llamagen-t2i-256"}}, r"captions\.file: .* Give --captions FILE"),
        (
            {"teacher": {"name": "tiny-random/llamagen-t2i-256"}, "captions": {"file": "digits"}},
            r"captions\.encoder: this teacher needs a text encoder",
        ),
        (
            {"teacher": {"name": "digits-text"}, "captions": {"file": "digits", "encoder": "tiny-random/32"}},
            r"captions\.encoder: tiny-random/32 makes features of 32 numbers, and this teacher takes 64",
        ),
        ({"teacher": {"name": "digits"}, "captions": {"file": "digits"}}, "digits draws images for classes"),
    ],
)
def test_captions_that_do_not_fit_the_teacher_are_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, dict[str, str]], message: str
) -> None:
    config = GenerateConfig.model_validate({"pairs": {}, **settings})
    with pytest.raises(Refused, match=message):
        generate(config, tmp_path / "pairs", workers=0, report=lambda *_: None, should_stop=lambda: False)
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize("family", ["var"], indirect=True)
def test_a_temperature_that_var_does_not_have_is_refused_first(
    teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    config = generate_config(teacher_path)
    warm = config.model_copy(update={"teacher": config.teacher.model_copy(update={"temperature": 0.9})})
    with pytest.raises(Refused, match=r"teacher\.temperature is 0\.9: VAR samples without"):
        generate(warm, tmp_path / "pairs", workers=0, report=REPORT, should_stop=NEVER)
    assert list(tmp_path.iterdir()) == []


def test_asking_for_fewer_pairs_than_there_are_is_refused_by_name(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    refuse_fewer_pairs(generate_config(teacher_path, num_pairs=65), pairs_root)  # rounded up to 96
    refuse_fewer_pairs(generate_config(teacher_path, num_pairs=200), pairs_root)
    refuse_fewer_pairs(generate_config(teacher_path, num_pairs=1), tmp_path)
    with pytest.raises(Refused, match=r"pairs\.num_pairs is 64, but .* already holds 96 training pairs"):
        refuse_fewer_pairs(generate_config(teacher_path, num_pairs=64), pairs_root)


@pytest.fixture
def damaged_root(teacher_path: Path, generate_config: Configs, tmp_path: Path) -> Path:
    """Two shards made eight at a time, then two sixteen at a time; 1 is damaged, 2 lost its row and the joined table."""
    root = tmp_path / "pairs"
    for changes in ({"num_pairs": 32, "batch_size": 8}, {}):
        config = generate_config(teacher_path, **changes)
        generate(config, root, workers=0, report=REPORT, should_stop=NEVER)
    damaged = root / "shards" / "pairs-000001.tar"
    whole = damaged.read_bytes()
    (tmp_path / "whole.tar").write_bytes(whole)
    damaged.write_bytes(whole[:5000] + bytes([whole[5000] ^ 8]) + whole[5001:])
    (root / "manifest" / "pairs-000002.parquet").unlink()
    (root / "manifest.parquet").unlink()
    assert {finding.kind for finding in verify(root)} == {"broken", "missing", "uncommitted"}
    return root


def test_repair_makes_damaged_and_missing_shards_again(
    damaged_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    summary = repair(damaged_root, str(teacher_path), workers=0, report=REPORT, should_stop=NEVER)
    assert summary.num_shards == 2
    assert shard_files(damaged_root)["pairs-000001.tar"] == (tmp_path / "whole.tar").read_bytes()
    assert verify(damaged_root) == []
    # Each as it was made, or as its neighbour: a matrix product of another shape may round differently.
    assert [row.batch_size for row in Manifest.open(damaged_root).rows] == [8, 8, 8, 16]


def test_repair_knows_a_lost_row_from_the_joined_table(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    root = tmp_path / "pairs"
    generate(generate_config(teacher_path, num_pairs=32), root, workers=0, report=REPORT, should_stop=NEVER)
    larger = generate_config(teacher_path, batch_size=8)
    generate(larger, root, workers=0, report=REPORT, should_stop=NEVER)
    (root / "manifest" / "pairs-000002.parquet").write_bytes(b"not a row")
    repair(root, str(teacher_path), workers=0, report=REPORT, should_stop=NEVER)
    assert [row.batch_size for row in Manifest.open(root).rows] == [16, 16, 8, 8]
    assert verify(root) == []


def test_repair_that_is_stopped_leaves_the_damage_to_be_found(
    damaged_root: Path, teacher_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(Refused("killed here"), monkeypatch)
    with pytest.raises(Refused, match="killed here"):
        repair(damaged_root, str(teacher_path), workers=0, report=REPORT, should_stop=NEVER)
    assert {finding.kind for finding in verify(damaged_root)} == {"missing", "uncommitted"}


def test_repair_of_the_last_shard_that_is_stopped_is_found_again(
    teacher_path: Path, generate_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pairs"
    generate(generate_config(teacher_path, num_pairs=64), root, workers=0, report=REPORT, should_stop=NEVER)
    (root / "shards" / "pairs-000002.tar").write_bytes(b"")
    breaking(Refused("killed here"), monkeypatch)
    with pytest.raises(Refused, match="killed here"):
        repair(root, str(teacher_path), workers=0, report=REPORT, should_stop=NEVER)
    assert [finding.kind for finding in verify(root)] == ["broken"]


def test_repair_refuses_another_teacher(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    loaded = load_teacher(str(teacher_path))
    save_teacher(loaded.teacher, loaded.family, other, {"data": "other"}, torch.float32)
    rows = row_files(pairs_root)
    with pytest.raises(Refused, match=r"not the teacher that made .* --teacher FILE"):
        repair(pairs_root, str(other), workers=0, report=REPORT, should_stop=NEVER)
    with pytest.raises(
        Refused, match=r"no teacher is called .*\. `tokenleap shards repair .* --teacher FILE`"
    ):
        repair(pairs_root, workers=0, report=REPORT, should_stop=NEVER)
    assert row_files(pairs_root) == rows


@pytest.mark.slow
@LLAMAGEN
def test_ctrl_c_in_a_terminal_stops_in_order(teacher_path: Path, tmp_path: Path) -> None:
    """SIGINT reaches the whole process group, workers too; the command ends by itself and says how to go on."""
    (tmp_path / "preset.toml").write_text(
        f'[teacher]\nname = "{teacher_path}"\nguidance_scale = 1.5\n[pairs]\nnum_pairs = 20000\n'
        "pairs_per_shard = 32\nbatch_size = 16\n"
    )
    process = started(["generate", "preset.toml", "--out", "pairs", "--workers", "2"], tmp_path)
    wait_until(lambda: len(row_files(tmp_path / "pairs")) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "missing shards are made and kept" in told
    assert "Go on with: tokenleap generate preset.toml" in told
    # The workers take shards in order and may finish them out of order: gaps are work to do, not damage.
    assert {finding.kind for finding in verify(tmp_path / "pairs")} <= {"missing", "uncommitted"}
