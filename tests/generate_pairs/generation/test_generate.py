"""Stage one's contract: the same bytes in every way of running, and no shard generated twice or lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed
import pytest
import torch

from generate_pairs.cluster.open_pool import open_pool
from generate_pairs.config import ClusterConfig, GenerateConfig
from generate_pairs.generation import shard_jobs, worker
from generate_pairs.generation.generate import STALE_SECONDS, generate
from generate_pairs.generation.plan import plan_generation, refuse_fewer_pairs
from generate_pairs.generation.repair import repair
from generate_pairs.generation.work_units import WorkUnit
from generate_pairs.teachers.checkpoints import load_teacher, save_teacher
from shards.core.errors import Failed, Refused, Stopped
from shards.dataset.manifest import Manifest
from shards.dataset.verify import verify

QUIETLY = {"report": lambda *_: None, "should_stop": lambda: False}
HERE = {"workers": 0, **QUIETLY}
Configs = Callable[..., GenerateConfig]

LLAMAGEN = pytest.mark.parametrize("family", ["llamagen"], indirect=True)
"""For slow tests that do not depend on the family."""


def shard_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "shards").glob("[!.]*"))}


def row_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "manifest").glob("[!.]*"))}


@LLAMAGEN
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_bytes_do_not_depend_on_the_workers(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path, workers: int
) -> None:
    generate(generate_config(teacher_path), tmp_path, workers=workers, **QUIETLY)
    assert shard_files(tmp_path) == shard_files(pairs_root)
    assert verify(tmp_path) == []


def test_a_smaller_data_set_is_the_beginning_of_a_larger_one(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    generate(generate_config(teacher_path, num_pairs=20), tmp_path, **HERE)
    small = shard_files(tmp_path)
    rows = row_files(tmp_path)
    assert len(small) == 2
    summary = generate(generate_config(teacher_path), tmp_path, **HERE)
    assert summary.num_shards == 2
    assert shard_files(tmp_path) == shard_files(pairs_root)
    assert {name: row_files(tmp_path)[name] for name in rows} == rows
    assert small.items() <= shard_files(tmp_path).items()


def test_finished_shards_are_not_regenerated(pairs_root: Path, teacher_path: Path, generate_config: Configs) -> None:
    before = row_files(pairs_root)
    summary = generate(generate_config(teacher_path), pairs_root, **HERE)
    assert summary.num_shards == 0
    assert row_files(pairs_root) == before


def test_a_stopped_generation_keeps_finished_shards_and_resumes(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    answers = iter([False, True])
    with pytest.raises(Stopped, match="1 of 4 missing shards"):
        generate(generate_config(teacher_path), tmp_path, **HERE | {"should_stop": lambda: next(answers)})
    assert len(Manifest.open(tmp_path).rows) == 1
    generate(generate_config(teacher_path), tmp_path, **HERE)
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
def test_a_killed_generation_resumes(pairs_root: Path, generation: Any, workers: int) -> None:
    """SIGKILL the driver three times, each time a little later; committed rows do not change."""
    root, rows = generation.root, dict[str, bytes]()
    conditions: list[Callable[[], bool]] = [
        lambda: (root / "dataset.json").is_file(),
        lambda: len(row_files(root)) >= 1,
        lambda: len(row_files(root)) >= 2,
    ]
    for condition in conditions:
        process = generation.start("--workers", workers)
        generation.wait_until(condition, process)
        assert process.poll() is None, process.communicate()[1]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert rows.items() <= row_files(root).items()
        rows = row_files(root)
    generation.run("--workers", workers)
    assert rows.items() <= row_files(root).items()
    assert shard_files(root) == shard_files(pairs_root)
    assert verify(root) == []


def test_other_settings_are_refused_by_name(pairs_root: Path, teacher_path: Path, generate_config: Configs) -> None:
    before = shard_files(pairs_root)
    with pytest.raises(Refused, match=r"guidance_scale: found 1\.5, requested 2\.5"):
        generate(generate_config(teacher_path, guidance_scale=2.5), pairs_root, **HERE)
    with pytest.raises(Refused, match="seed: found 3, requested 4"):
        plan_generation(generate_config(teacher_path, seed=4), pairs_root)
    assert shard_files(pairs_root) == before


def test_only_old_temporary_files_are_removed(pairs_root: Path, teacher_path: Path, generate_config: Configs) -> None:
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
    generate(generate_config(teacher_path), pairs_root, **HERE)
    assert {path for path in left if path.exists()} == {path for path in left if path.name == ".young.tmp"}
    for path in left:
        path.unlink(missing_ok=True)
    (pairs_root / "text_features").rmdir()


def test_planning_writes_nothing(teacher_path: Path, generate_config: Configs, tmp_path: Path) -> None:
    plan = plan_generation(generate_config(teacher_path), tmp_path / "pairs")
    assert plan.missing == (0, 1, 2, 3)
    assert plan.num_training_pairs == 96
    assert list(tmp_path.iterdir()) == []


def test_a_committed_shard_is_not_computed_again(
    teacher_path: Path, generate_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = generate_config(teacher_path)
    plan = plan_generation(config, tmp_path)
    generate(config, tmp_path, **HERE)
    rows = row_files(tmp_path)
    monkeypatch.setattr(worker, "pair_maker", lambda *_: pytest.fail("it computes"))
    unit = WorkUnit(2, 32, 16)
    row = worker.generate_shard(tmp_path, plan.spec, config.teacher, unit)
    assert row == Manifest.open(tmp_path).rows[2]
    assert row_files(tmp_path) == rows
    with pytest.raises(pytest.fail.Exception, match="it computes"):
        worker.generate_shard(tmp_path, plan.spec, config.teacher, replace(unit, replaces=True))


def breaking(error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make shard 2 raise this error; returns the list of attempted shards, which grows."""
    real, tried = shard_jobs.generate_shard, []

    def generate_shard(root, spec, teacher, unit, device):
        tried.append(unit.shard_index)
        if unit.shard_index == 2:
            raise error
        return real(root, spec, teacher, unit, device)

    monkeypatch.setattr(shard_jobs, "generate_shard", generate_shard)
    return tried


def test_one_failing_shard_does_not_stop_the_others(
    teacher_path: Path, generate_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(RuntimeError("out of memory"), monkeypatch)
    with pytest.raises(Failed, match=r"1 of 4 shards .* could not be made.*out of memory"):
        generate(generate_config(teacher_path), tmp_path, **HERE)
    assert Manifest.open(tmp_path).missing(4) == (2,)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (Failed("no space left there"), Failed, "no space left there. 2 of 4 missing shards in"),
        (OSError(28, "No space left on device"), Failed, "No space left on device. 2 of 4 missing"),
        (Refused("cannot write"), Refused, "^cannot write$"),
    ],
    ids=["full disk", "full disk, reported by the system", "no permission"],
)
def test_an_error_that_affects_every_shard_ends_the_work(
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
        generate(generate_config(teacher_path), tmp_path, **HERE)
    assert tried == [0, 1, 2]


def test_a_worker_killed_during_start_up_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(**_: object) -> None:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(distributed, "SpecCluster", dying)
    running = open_pool(ClusterConfig(), 1, print)
    with pytest.raises(Failed, match=r"Nanny failed to start\. Run the same command again"), running:
        pass


@LLAMAGEN
def test_a_refusal_in_a_worker_reaches_the_driver(teacher_path: Path, generate_config: Configs, tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("where a folder should be")
    with pytest.raises(Refused, match=r"cannot write .*pairs-00000"):
        generate(generate_config(teacher_path), tmp_path, workers=1, **QUIETLY)


def test_progress_counts_earlier_runs(teacher_path: Path, generate_config: Configs, tmp_path: Path) -> None:
    generate(generate_config(teacher_path, num_pairs=32), tmp_path, **HERE)
    reports: list[tuple[int, int, str]] = []
    generate(generate_config(teacher_path), tmp_path, **HERE | {"report": lambda *progress: reports.append(progress)})
    assert reports == [(64, 128, ""), (96, 128, ""), (128, 128, "")]


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
            r"captions\.encoder: the features of tiny-random/32 have size 32, but this teacher needs size 64",
        ),
        ({"teacher": {"name": "digits"}, "captions": {"file": "digits"}}, "digits draws images for classes"),
    ],
)
def test_unsuitable_captions_are_refused_before_any_write(
    tmp_path: Path, settings: dict[str, dict[str, str]], message: str
) -> None:
    config = GenerateConfig.model_validate({"pairs": {}, **settings})
    with pytest.raises(Refused, match=message):
        generate(config, tmp_path / "pairs", **HERE)
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize("family", ["var"], indirect=True)
def test_a_temperature_for_var_is_refused_before_any_write(
    teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    config = generate_config(teacher_path)
    warm = config.model_copy(update={"teacher": config.teacher.model_copy(update={"temperature": 0.9})})
    with pytest.raises(Refused, match=r"teacher\.temperature is 0\.9: VAR samples without"):
        generate(warm, tmp_path / "pairs", **HERE)
    assert list(tmp_path.iterdir()) == []


def test_requesting_fewer_pairs_than_exist_is_refused_by_name(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    refuse_fewer_pairs(generate_config(teacher_path, num_pairs=65), pairs_root)  # rounded up to 96
    refuse_fewer_pairs(generate_config(teacher_path, num_pairs=200), pairs_root)
    refuse_fewer_pairs(generate_config(teacher_path, num_pairs=1), tmp_path)
    with pytest.raises(Refused, match=r"pairs\.num_pairs is 64, but .* already holds 96 training pairs"):
        refuse_fewer_pairs(generate_config(teacher_path, num_pairs=64), pairs_root)


@pytest.fixture
def damaged_root(teacher_path: Path, generate_config: Configs, tmp_path: Path) -> Path:
    """Two shards with batches of eight, then two of sixteen; 1 is damaged, the row of 2 and the joined table are lost."""
    root = tmp_path / "pairs"
    for changes in ({"num_pairs": 32, "batch_size": 8}, {}):
        generate(generate_config(teacher_path, **changes), root, **HERE)
    damaged = root / "shards" / "pairs-000001.tar"
    data = damaged.read_bytes()
    (tmp_path / "undamaged.tar").write_bytes(data)
    damaged.write_bytes(data[:5000] + bytes([data[5000] ^ 8]) + data[5001:])
    (root / "manifest" / "pairs-000002.parquet").unlink()
    (root / "manifest.parquet").unlink()
    assert {finding.kind for finding in verify(root)} == {"broken", "missing", "uncommitted"}
    return root


def test_repair_regenerates_damaged_and_missing_shards(damaged_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    summary = repair(damaged_root, str(teacher_path), **HERE)
    assert summary.num_shards == 2
    assert shard_files(damaged_root)["pairs-000001.tar"] == (tmp_path / "undamaged.tar").read_bytes()
    assert verify(damaged_root) == []
    # The recorded batch size or the neighbour's: matrix products of other shapes may round differently.
    assert [row.batch_size for row in Manifest.open(damaged_root).rows] == [8, 8, 8, 16]


def test_repair_reads_a_lost_row_from_the_joined_table(
    pairs_root: Path, teacher_path: Path, generate_config: Configs, tmp_path: Path
) -> None:
    root = tmp_path / "pairs"
    for changes in ({"num_pairs": 32}, {"batch_size": 8}):
        generate(generate_config(teacher_path, **changes), root, **HERE)
    (root / "manifest" / "pairs-000002.parquet").write_bytes(b"not a row")
    repair(root, str(teacher_path), **HERE)
    assert [row.batch_size for row in Manifest.open(root).rows] == [16, 16, 8, 8]
    assert verify(root) == []


def test_an_interrupted_repair_leaves_the_damage_detectable(
    damaged_root: Path, teacher_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(Refused("killed here"), monkeypatch)
    with pytest.raises(Refused, match="killed here"):
        repair(damaged_root, str(teacher_path), **HERE)
    assert {finding.kind for finding in verify(damaged_root)} == {"missing", "uncommitted"}


def test_an_interrupted_repair_of_the_last_shard_leaves_it_detectable(
    teacher_path: Path, generate_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pairs"
    generate(generate_config(teacher_path, num_pairs=64), root, **HERE)
    (root / "shards" / "pairs-000002.tar").write_bytes(b"")
    breaking(Refused("killed here"), monkeypatch)
    with pytest.raises(Refused, match="killed here"):
        repair(root, str(teacher_path), **HERE)
    assert [finding.kind for finding in verify(root)] == ["broken"]


def test_repair_refuses_another_teacher(pairs_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    loaded = load_teacher(str(teacher_path))
    save_teacher(loaded.teacher, loaded.family, other, {"data": "other"}, torch.float32)
    rows = row_files(pairs_root)
    with pytest.raises(Refused, match=r"not the teacher that made .* --teacher FILE"):
        repair(pairs_root, str(other), **HERE)
    remedy = r"no teacher is called .*; give its file with `tokenleap shards repair .* --teacher FILE`"
    with pytest.raises(Refused, match=remedy):
        repair(pairs_root, **HERE)
    assert row_files(pairs_root) == rows


@pytest.mark.slow
@LLAMAGEN
def test_ctrl_c_in_a_terminal_stops_in_order(generation: Any) -> None:
    """SIGINT reaches the whole process group; the driver finishes the running shards and prints how to resume."""
    generation.configure(num_pairs=20_000)
    process = generation.start("--workers", 2)
    generation.wait_until(lambda: len(generation.rows()) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)
    messages = generation.ended(process, 130)
    assert "missing shards are made and kept" in messages
    assert "Resume with: tokenleap generate preset.toml" in messages
    # Workers may finish shards out of order: gaps are missing shards, not damage.
    assert {finding.kind for finding in verify(generation.root)} <= {"missing", "uncommitted"}
