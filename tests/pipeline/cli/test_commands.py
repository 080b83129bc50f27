"""The output of each command, on success and for invalid options."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from shards.dataset.manifest import Manifest
from shards.dataset.replace_shard import Replacement

pytestmark = pytest.mark.quick

Command = Callable[..., Result]


def test_generate_prints_the_number_of_pairs(tokenleap: Command, stages: Any, tmp_path: Path) -> None:
    result = tokenleap("generate", "digits", "--out", tmp_path / "new", "--workers", 0)
    assert "made 60 pairs, 30.0 pairs/s" in result.stdout
    assert "40 for training, 20 held out, 3 shards" in result.stdout
    assert stages.arguments["generate"] == {"workers": 0}


def test_generate_dry_run_shows_configuration_and_plan_and_writes_nothing(
    tokenleap: Command, stages: Any, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    result = tokenleap("generate", "digits", "--out", out, "--num-pairs", 77, "--set", "pairs.num_pairs=5", "--dry-run")
    assert "num_pairs = 77" in result.stdout
    assert "3 shards to make" in result.stdout
    assert stages.calls == []
    assert not out.exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["generate", "plan"])
def test_generate_refuses_fewer_pairs_than_exist(
    tokenleap: Command, stages: Any, tmp_path: Path, more: list[str]
) -> None:
    stages.pairs_done = 100
    result = tokenleap("generate", "digits", "--out", tmp_path, "--num-pairs", 10, "--workers", 0, *more, code=2)
    assert f"{tmp_path} already holds 100 training pairs" in result.stderr
    assert stages.calls == []


def test_distill_trains_on_a_view_and_reports_the_metrics(
    tokenleap: Command, stages: Any, pairs: Path, tmp_path: Path
) -> None:
    result = tokenleap("distill", "digits", "--pairs", pairs, "--out", tmp_path / "s", "--size", 30, "--num-steps", 7)
    assert stages.arguments["train"] == {"size": 30, "teacher": "digits"}
    closing = "loss 0.25, held-out cross-entropy (nats a token) 2.5, overfitting gap +0.250"
    assert result.stdout.endswith(f"7 steps are done, 3 of them now in 1.0 s, {closing}\n")


def test_distill_dry_run_plans_on_the_existing_pairs_and_refuses_what_training_refuses(
    tokenleap: Command, stages: Any, pairs: Path, tmp_path: Path
) -> None:
    arguments = ("distill", "digits", "--pairs", pairs, "--out", tmp_path / "s", "--num-steps", 7, "--dry-run")
    assert tokenleap(*arguments).stdout.endswith("\n7 steps on 40 pairs\n")
    stages.steps_done = 10
    assert f"there are 10 steps in {tmp_path / 's'}" in tokenleap(*arguments, code=2).stderr
    assert stages.calls == []
    assert not (tmp_path / "s").exists()


def test_distill_refuses_pairs_of_other_settings(tokenleap: Command, stages: Any, pairs: Path, tmp_path: Path) -> None:
    stages.requested = replace(stages.requested, seed=5)
    result = tokenleap("distill", "digits", "--pairs", pairs, "--out", tmp_path / "s", code=2)
    assert "seed: found 0, requested 5" in result.stderr
    assert stages.calls == []


def test_distill_refuses_missing_pairs(tokenleap: Command, stages: Any, pairs: Path, tmp_path: Path) -> None:
    result = tokenleap("distill", "digits", "--pairs", pairs, "--out", tmp_path / "s", "--size", 41, code=2)
    assert "has 40 training pairs" in result.stderr
    assert "--num-pairs 41" in result.stderr
    result = tokenleap("distill", "digits", "--pairs", tmp_path, "--out", tmp_path / "s", code=2)
    assert f"{tmp_path} is not a pair data set" in result.stderr


def test_a_missing_student_is_refused_and_a_run_folder_gets_a_hint(tokenleap: Command, tmp_path: Path) -> None:
    nothing = tokenleap("sample", tmp_path, "--out", tmp_path / "x.png", code=2)
    assert f"{tmp_path} contains no student (config.json is missing); `tokenleap distill` writes one" in nothing.stderr
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text("{}")
    run = tokenleap("sample", tmp_path, "--out", tmp_path / "x.png", code=2)
    assert f"did you mean {tmp_path / 'student'}?" in run.stderr


def test_shards_info_prints_totals_and_lineage(tokenleap: Command, pairs: Path) -> None:
    result = tokenleap("shards", "info", pairs)
    lines = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert lines["pairs"].startswith("40 for training, 20 held out, 3 shards, ")
    assert lines["pairs"].endswith("40.0 pairs/s a worker")
    assert (lines["classes"], lines["pairs/class"]) == ("10", "6, held-out ones included")
    size = sum(path.stat().st_size for path in (pairs / "shards").iterdir())
    assert lines["bytes"] == f"{size:,} ({size / 1e3:.1f} kB), {3 * 2 * 512:,} a pair"
    assert lines["rate"] == "40.0 pairs/s a worker, 0.000 device-hours"
    assert lines["codebook"] == "16 rows of 2"
    assert lines["teacher.guidance_scale"] == "1.5"


def test_shards_verify_names_the_damaged_file_and_the_remedy(tokenleap: Command, pairs: Path) -> None:
    assert tokenleap("shards", "verify", pairs).stdout == f"{pairs}: every shard is intact\n"
    broken = pairs / "shards" / "pairs-000001.tar"
    content = bytearray(broken.read_bytes())
    content[2000] ^= 1
    broken.write_bytes(content)
    result = tokenleap("shards", "verify", pairs, code=1)
    assert f"broken: {broken}: " in result.stdout
    assert f"`tokenleap shards repair {pairs}`" in result.stderr


def test_an_uncommitted_shard_is_reported_but_is_no_damage(tokenleap: Command, pairs: Path) -> None:
    (pairs / "manifest" / "pairs-000002.parquet").unlink()
    assert tokenleap("shards", "verify", pairs).stdout.startswith("uncommitted: ")


def test_shards_repair_gets_the_findings(tokenleap: Command, stages: Any, pairs: Path) -> None:
    (pairs / "shards" / "pairs-000001.tar").unlink()
    result = tokenleap("shards", "repair", pairs, "--workers", 3, "--teacher", "mine")
    assert stages.arguments["repair"] == {"workers": 3, "root": pairs, "teacher": "mine", "findings": ["broken"]}
    assert result.stdout == f"{pairs}: 2 shards repaired\n"


def test_shards_repair_compares_each_shard_with_the_old_one(tokenleap: Command, stages: Any, pairs: Path) -> None:
    rows = Manifest.open(pairs).rows
    stages.replaced = (
        Replacement(rows[0], True, 320),
        Replacement(rows[1], False, 320, num_compared=300, num_differing=3),
        Replacement(rows[2], False, 320),
    )
    result = tokenleap("shards", "repair", pairs, "--workers", 0)
    assert result.stdout.splitlines()[:3] == [
        "pairs-000000: equal to what was committed",
        "pairs-000001: 3 of 300 tokens differ (1 %), 20 could not be read any more; it has a new row",
        "pairs-000002: nothing is left to compare it with; it has a new row",
    ]


def test_many_repaired_shards_are_summarised(tokenleap: Command, stages: Any, pairs: Path) -> None:
    row = Manifest.open(pairs).rows[0]
    changed = Replacement(row, False, 8, num_compared=8, num_differing=1)
    stages.replaced = (*[Replacement(row, True, 8)] * 30, *[changed] * 25)
    lines = tokenleap("shards", "repair", pairs, "--workers", 0).stdout.splitlines()
    assert lines[0] == "30 shards: equal to what was committed"
    assert lines[-2] == "5 shards more: 5 of 40 tokens differ (12.5 %); they have new rows"
    assert len(lines) == 23


def test_shards_extend_requests_the_larger_number(tokenleap: Command, stages: Any, pairs: Path) -> None:
    result = tokenleap("shards", "extend", pairs, "--num-pairs", 50, "--workers", 0)
    assert stages.arguments["extend"] == {"workers": 0, "root": pairs, "num_pairs": 50, "teacher": None}
    assert "40 for training, 20 held out" in result.stdout


def test_shards_verify_reads_a_sample_and_prints_its_seed(tokenleap: Command, pairs: Path) -> None:
    result = tokenleap("shards", "verify", pairs, "--sample", 1)
    found = re.fullmatch(r".*a sample of 1, is intact \(--sample 1 --seed (\d+)\)\n", result.stdout)
    assert found is not None
    again = tokenleap("shards", "verify", pairs, "--sample", 1, "--seed", found[1])
    assert again.stdout == result.stdout
    tokenleap("shards", "verify", pairs, "--seed", 1, code=2)


def test_shards_export_writes_a_table(tokenleap: Command, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.parquet"
    result = tokenleap("shards", "export", pairs, "--to", out, "--size", 25)
    assert result.stdout == f"{out}: 25 pairs, {out.stat().st_size:,} bytes\n"
    wrong = tokenleap("shards", "export", pairs, "--to", tmp_path / "pairs.csv", code=2)
    assert "pairs.csv must end in .parquet" in wrong.stderr
    tokenleap("shards", "export", pairs, "--to", out, "--size", 41, code=2)


@pytest.mark.parametrize(
    "arguments",
    [["info"], ["verify"], ["export", "--to", "x.parquet"], ["preview", "--out", "x.png"]],
    ids=lambda arguments: arguments[0],
)
def test_shards_commands_refuse_a_folder_without_pairs(tokenleap: Command, tmp_path: Path, arguments: list[str]) -> None:
    assert "is not a pair data set" in tokenleap("shards", *arguments, tmp_path / "nowhere", code=2).stderr
    assert not Path(arguments[-1]).exists()


@pytest.mark.parametrize("name", ["evaluate", "report"])
def test_commands_on_a_run_refuse_another_folder(tokenleap: Command, tmp_path: Path, name: str) -> None:
    assert f"{tmp_path} is not a run: it has no config.toml" in tokenleap(name, tmp_path, code=2).stderr


def test_evaluate_runs_again_and_prints_the_table(tokenleap: Command, stages: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tokenleap("run", "digits", "--out", run, "--workers", 0)
    (run / "evaluation.json").write_text(json.dumps({"rows": []}))
    result = tokenleap("evaluate", run)
    assert stages.calls.count("evaluate") == 2
    assert result.stdout.startswith("digits, 2,000 images, noise seed 0\n")
    assert "0.950    8.00 (9.00)     10.0 (9.0)       4.0 (3.0)" in result.stdout


def test_evaluate_refuses_a_run_without_a_student(tokenleap: Command, stages: Any, tmp_path: Path) -> None:
    stages.stop_in = "train"
    tokenleap("run", "digits", "--out", tmp_path / "run", "--workers", 0, code=130)
    assert "contains no student" in tokenleap("evaluate", tmp_path / "run", code=2).stderr


def test_a_teacher_is_trained_into_a_file(tokenleap: Command, fake_module: Callable[..., None], tmp_path: Path) -> None:
    calls: list[Any] = []
    fake_module(
        "generate_pairs.digits.train_teachers",
        train_teacher=lambda name, out, seed, report: calls.append((name, out, seed)),
    )
    tokenleap("teachers", "train", "digits-var", "--out", tmp_path / "t.safetensors", "--seed", 3)
    assert calls == [("digits-var", tmp_path / "t.safetensors", 3)]
    tokenleap("teachers", "train", "cats", "--out", tmp_path / "t", code=2)


def test_a_teachers_folder_is_checked_before_its_training(
    tokenleap: Command, fake_module: Callable[..., None], tmp_path: Path
) -> None:
    fake_module("generate_pairs.digits.train_teachers", train_teacher=lambda *_: pytest.fail("trained"))
    (tmp_path / "file").touch()
    nowhere = tokenleap("teachers", "train", "digits", "--out", tmp_path / "file" / "t.safetensors", code=2)
    assert str(tmp_path / "file") in nowhere.stderr
    unusable = tokenleap("teachers", "train", "digits", "--out", tmp_path / "t.bin", code=2)
    assert "t.bin must end in .safetensors" in unusable.stderr


def test_an_interrupted_training_of_a_teacher_reports_that_nothing_was_saved(
    tokenleap: Command, fake_module: Callable[..., None], tmp_path: Path
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    fake_module("generate_pairs.digits.train_teachers", train_teacher=interrupt)
    result = tokenleap("teachers", "train", "digits", "--out", tmp_path / "t.safetensors", code=130)
    assert result.stderr == (
        "tokenleap: stopped: nothing was saved, this command writes only at its end. "
        f"Start again with: tokenleap teachers train digits --out {tmp_path / 't.safetensors'}\n"
    )
    assert list(tmp_path.iterdir()) == []
