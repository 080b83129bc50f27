"""`tokenleap evaluate`: the requested evaluation, its result file, and tables of stored results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from distill.config import EvaluationConfig
from pipeline.config.run_config import compose
from pipeline.evaluation_request import requested_evaluation
from pipeline.report.method_table import HEADER, method_table, short_parameters
from pipeline.report.published_numbers import published_rows
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

Command = Callable[..., Result]


@pytest.fixture
def run(tokenleap: Command, stages: Any, tmp_path: Path) -> Path:
    """A finished run of the preset digits."""
    out = tmp_path / "run"
    tokenleap("run", "digits", "--out", out, "--workers", 0)
    stages.calls.clear()
    return out


def requested(changes: Sequence[str], preset: str = "digits") -> EvaluationConfig:
    return requested_evaluation(compose(preset, ["evaluation.seed=3", "evaluation.repeats=2"]), changes)


def test_the_runs_settings_are_the_defaults_for_its_own_protocol() -> None:
    own = requested([])
    assert (own.protocol, own.num_images, own.seed, own.repeats) == ("digits", 2_000, 3, 2)
    fewer = requested(["evaluation.num_images=500"])
    assert (fewer.num_images, fewer.curve_images, fewer.repeats) == (500, 500, 2)
    assert requested(["evaluation.protocol=digits"]) == own


def test_another_protocol_has_its_own_defaults() -> None:
    other = requested(["evaluation.seed=4", "evaluation.protocol=adm", "evaluation.reference=batch.npz"])
    assert (other.num_images, other.seed, other.repeats, other.reference) == (50_000, 4, 1, "batch.npz")
    assert requested(["evaluation.protocol=samples"], "var-d16").num_images == 64
    assert requested(["evaluation.protocol=dd"], "var-d16").seed == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.seed=1"], "train.seed=1: only settings of the evaluation can change here"),
        (["evaluation.protocol=imagenet"], "it is one of digits, samples, adm, dd, folder"),
        (["evaluation.num_images=99"], "num_images is 99, and the scores of the protocol digits need at least"),
        (["evaluation.repeats=0"], "evaluation.repeats cannot be 0: it is a whole number, at least 1"),
        (["evaluation.colour=1"], "there is no key evaluation.colour"),
    ],
)
def test_an_invalid_request_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        requested(changes)


def test_short_options_override_set(tokenleap: Command, stages: Any, run: Path) -> None:
    result = tokenleap(*("evaluate", run, "--set", "evaluation.seed=8", "--seed", 9, "--repeats", 3, "--num-images", 300))
    assert stages.arguments["evaluate"]["file"] == "evaluation.json"
    config = stages.arguments["evaluate"]["config"]
    assert (config.seed, config.repeats, config.num_images) == (9, 3, 300)
    assert result.stdout.startswith("digits, 300 images, noise seeds 9 to 11\n")


def test_another_protocol_is_written_to_its_own_file(tokenleap: Command, stages: Any, run: Path) -> None:
    before = (run / "evaluation.json").read_bytes()
    result = tokenleap("evaluate", run, "--protocol", "folder", "--reference", "12,5", "--num-images", 200)
    assert stages.arguments["evaluate"]["file"] == "evaluation-folder.json"
    assert stages.arguments["evaluate"]["config"].reference == "12,5"
    assert (run / "evaluation.json").read_bytes() == before
    assert f"{run / 'evaluation-folder.json'}; `tokenleap report" in result.stdout


def test_a_dry_run_prints_the_plan_or_what_is_missing_and_writes_nothing(
    tokenleap: Command, stages: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = SimpleNamespace(tokenizer=SimpleNamespace(image_shape=(1, 8, 8)), is_text_conditional=False)
    monkeypatch.setattr("distill.student.student.Student.from_pretrained", lambda folder: student)
    kept = run / ".evaluation" / "evaluation"
    kept.mkdir(parents=True)
    (kept / "teacher-seed-0.safetensors").touch()
    before = sorted(run.rglob("*"))
    planned = tokenleap("evaluate", run, "--repeats", 3, "--dry-run")
    assert "repeats = 3" in planned.stdout
    assert f"2,000 images of each method with each of 3 noise seeds into {run / 'evaluation.json'}" in planned.stdout
    assert "methods stored by a stopped evaluation, reused if nothing has changed: 1" in planned.stdout
    refused = tokenleap("evaluate", run, "--protocol", "folder", "--dry-run", code=2)
    assert "the protocol folder needs --set evaluation.reference=PATH: a folder of PNG" in refused.stderr
    assert sorted(run.rglob("*")) == before
    assert stages.calls == []


def test_the_table_is_printed_without_an_evaluation(tokenleap: Command, stages: Any, run: Path) -> None:
    result = tokenleap("evaluate", run, "--table")
    assert stages.calls == []
    assert result.stdout.splitlines() == [
        "Protocol digits, 2,000 images, noise seed 0",
        "method     steps  parameters        Frechet  to teacher  inception  precision  recall   s/image at 1"
        "  speed-up at 1   s/image at 64  speed-up at 64",
        "teacher       16          1M  1.250 ± 0.050      0.0125       8.50      0.900   0.800   0.08 (0.081)"
        "      1.0 (1.0)  0.004 (0.0045)       1.0 (1.0)",
        "student-1      1        1.1M          3.500           -       8.10      0.850   0.750  0.008 (0.009)"
        "     10.0 (9.0)  0.001 (0.0015)       4.0 (3.0)",
        "Times and speed-ups over the teacher are of one image at a time and of batches of 64, on cpu; in parentheses "
        "with decoding.",
        "to teacher: Frechet distance to 20,000 images of the pairs.",
    ]
    page = tokenleap("evaluate", run, "--markdown").stdout.splitlines()
    assert page[2].startswith(f"| {' | '.join(HEADER)} | s/image at 1 | speed-up at 1 |")
    assert page[5].startswith("| student-1 | 1 | 1.1M | 3.500 |")


def test_notes_below_a_table_explain_rows_of_real_images(tokenleap: Command, stages: Any, run: Path) -> None:
    stored = run / "evaluation.json"
    notes = {
        "real_images": 500,
        "real_against": "the 1,297 training digits",
        "missing_rows": {"reconstruction": "the teacher's tokenizer has no encoder"},
    }
    stored.write_text(json.dumps({**json.loads(stored.read_text()), **notes}))
    assert tokenleap("evaluate", run, "--table").stdout.splitlines()[-3:-1] == [
        "real: 500 real images against the 1,297 training digits.",
        "No row reconstruction: the teacher's tokenizer has no encoder.",
    ]


def test_without_a_protocol_every_table_is_printed(tokenleap: Command, stages: Any, run: Path) -> None:
    tokenleap("evaluate", run, "--protocol", "samples")
    every = tokenleap("evaluate", run, "--table").stdout
    assert "Protocol digits, 2,000 images, noise seed 0" in every
    assert "\n\nProtocol samples, 64 images, noise seed 0" in every
    assert tokenleap("evaluate", run, "--table", "--protocol", "samples").stdout.startswith("Protocol samples")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--protocol", "adm"),
            "{run}/evaluation-adm.json does not exist yet: run `tokenleap evaluate {run} --set evaluation.protocol=adm`",
        ),
        (
            ("--repeats", 3),
            "{run}/evaluation.json was made with other settings: repeats: found 1, requested 3. Run `tokenleap evaluate "
            "{run} --set evaluation.repeats=3`",
        ),
    ],
)
def test_a_missing_table_is_refused_with_the_command(
    tokenleap: Command, stages: Any, run: Path, arguments: tuple[Any, ...], message: str
) -> None:
    assert tokenleap("evaluate", run, "--table", *arguments, code=2).stderr == f"tokenleap: {message.format(run=run)}\n"
    assert stages.calls == []


def test_a_table_of_another_student_is_refused(tokenleap: Command, stages: Any, run: Path) -> None:
    (run / "student" / "config.json").write_text(json.dumps({"student_sha256": "another"}))
    assert "scores another student than the current one" in tokenleap("evaluate", run, "--table", code=2).stderr
    # With another noise weight, the same weights generate other images.
    result = json.loads((run / "evaluation.json").read_text())
    again = {"student_sha256": result["student_sha256"], "noise_weight": 0.5}
    (run / "student" / "config.json").write_text(json.dumps(again))
    tokenleap("evaluate", run, "--table", code=2)
    (run / "student" / "config.json").write_text(json.dumps(again | {"noise_weight": 0.0}))
    tokenleap("evaluate", run, "--table")


def test_a_published_teacher_has_the_papers_rows_next_to_the_measured_ones() -> None:
    rows = [
        {"method": "teacher", "num_steps": 10, "frechet_distance": 4.5, "seconds_per_image": {"64": 0.2}},
        {"method": "student-1", "num_steps": 1, "frechet_distance": 9.0, "seconds_per_image": {"64": 0.05}},
    ]
    result = {"protocol": "adm", "num_images": 50_000, "seed": 0, "repeats": 2, "rows": rows}
    table = method_table(result, "var-d16")
    assert table.heading == "Protocol adm, 50,000 images, noise seeds 0 to 1"
    assert [cells[0] for cells in table.rows][:5] == [
        *("teacher", "  published: VAR-d16"),
        *("student-1", "  published: VAR-d16-DD", "  published: VAR-d16, DD2"),
    ]
    assert table.rows[3] == (
        *("  published: VAR-d16-DD", "1", "327M", "9.94", "-", "193.6", "0.8", "0.37", "-", "-", "0.021", "6.3"),
    )
    # Published rows without a measured counterpart are at the end.
    assert table.rows[-1][:4] == ("skip-2  published: VAR", "8", "310M", "40.09")
    assert any("not of this run" in note for note in table.notes)
    assert any("what fills the skipped steps is unknown" in note for note in table.notes)
    assert method_table(result, "tiny-random/var-d16").rows == (table.rows[0][:-2], table.rows[2][:-2])


@pytest.mark.parametrize(
    "teacher", ["var-d16", "var-d20", "var-d24", "llamagen-b-256", "llamagen-l-256", "llamagen-t2i-256"]
)
def test_every_real_preset_has_published_figures_of_methods_that_are_made(teacher: str) -> None:
    from distill.sampling.method_spec import default_pre_trained
    from distill.sampling.methods import PAPERS_SKIPS

    steps, k = (10, 5) if teacher == "var-d16" else (10, 4) if teacher.startswith("var") else (256, 80)
    made = {
        *("teacher", "student-1", "student-2", "onestep*"),
        *(method.name for method in default_pre_trained((0, k))),
        *(f"skip-{n}" for n in PAPERS_SKIPS[steps]),
    }
    rows = published_rows(teacher)
    assert {row.method for row in rows} <= made
    assert {"teacher", "student-1", "student-2"} <= {row.method for row in rows}
    for row in rows:
        if row.method.startswith("skip-"):
            assert row.num_steps == steps - int(row.method.removeprefix("skip-"))
    assert published_rows("digits") == ()


@pytest.mark.parametrize(
    ("count", "words"),
    [(None, "-"), (1_090_000_000, "1.09B"), (327_000_000, "327M"), (98_300_000, "98.3M"), (50_746, "50.7k")],
)
def test_parameters_are_short(count: int | None, words: str) -> None:
    assert short_parameters(count) == words
