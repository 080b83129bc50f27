"""benchmarks/results_table.py on fabricated runs: means and standard errors, commands, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from results_table import EvaluatedRun, main, page, table, with_error

from pipeline.config.run_config import compose
from pipeline.run_folder.run_dir import claim
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Creates a run of the preset digits with an evaluation."""

    def make(name: str, seed: int, distance: float, *overrides: str, **evaluation: Any) -> Path:
        run_dir = claim(tmp_path / name, compose("digits", [f"train.seed={seed}", *overrides]))
        run_dir.student.mkdir()
        (run_dir.student / "config.json").write_text(json.dumps({"student_sha256": name}))
        rows = [
            {"method": "real", "frechet_distance": 0.1},
            {
                "method": "teacher",
                "num_steps": 16,
                "num_parameters": 1_000_000,
                "frechet_distance": 0.09,
                "seconds_per_image": {"1": 0.08, "64": 0.004},
                "decode_seconds_per_image": {"1": 0.002},
            },
            {
                "method": "student-1",
                "num_steps": 1,
                "num_parameters": 1_100_000,
                "frechet_distance": distance,
                "token_match": distance / 2,
                "seconds_per_image": {"1": 0.008, "64": 0.001 * (1 + seed)},
                "decode_seconds_per_image": {"1": 0.002},
            },
        ]
        result = {"student_sha256": name, "protocol": "digits", "num_images": 2000, "seed": 0, "rows": rows}
        run_dir.evaluation.write_text(json.dumps({**result, **evaluation}))
        return run_dir.root

    return make


def script(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_table_has_means_and_standard_errors(make_run: MakeRun) -> None:
    runs = [EvaluatedRun.read(make_run(f"run-{seed}", seed, distance)) for seed, distance in enumerate((0.2, 0.4, 0.6))]
    results = table(runs)
    assert results.header == (
        *("method", "steps", "parameters", "Fréchet distance", "token match"),
        *(
            "ms/image, batch 1",
            "speed-up, batch 1",
            "ms/image, batch 1, with decoding",
            "speed-up, batch 1, with decoding",
        ),
        *("ms/image, batch 64", "speed-up, batch 64"),
    )
    # Of 0.2, 0.4, 0.6: standard deviation 0.2, over the root of three 0.115. Speed-ups 4, 2 and 4/3.
    assert results.rows == (
        ("real", "", "", "0.100", *[""] * 7),
        ("teacher", "16", "1M", "0.090", "", "80", "1", "82", "1", "4", "1"),
        ("student-1", "1", "1.1M", "0.400 ± 0.115", "0.200 ± 0.058", "8", "10", "10", "8.2", "2 ± 0.577", "2.44 ± 0.801"),
    )


def test_the_page_names_the_commands_and_the_protocol(make_run: MakeRun) -> None:
    runs = [make_run(f"run-{seed}", seed, 0.2, "pairs.num_pairs=20000") for seed in (0, 1)]
    result = script("digits", *runs)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[1:4] == [
        f"tokenleap run digits --out {runs[0]} --set pairs.num_pairs=20000",
        f"tokenleap run digits --out {runs[1]} --set pairs.num_pairs=20000 --set train.seed=1",
        f"python benchmarks/results_table.py digits {runs[0]} {runs[1]}",
    ]
    assert "Protocol digits, 2,000 images, noise seed 0; mean ± standard error over 2 training seeds (0, 1)." in lines
    assert sum(line.startswith("| ") for line in lines) == 2 + 3


def test_a_run_that_was_evaluated_again_has_that_command_too(make_run: MakeRun) -> None:
    run = make_run("run", 0, 0.2, repeats=3, num_images=500)
    lines = page("digits", [EvaluatedRun.read(run)])
    assert lines[1:3] == [f"tokenleap run digits --out {run}", f"tokenleap evaluate {run} --num-images 500 --repeats 3"]
    assert any(line.startswith("Protocol digits, 500 images, noise seeds 0 to 2;") for line in lines)


def test_one_run_has_no_standard_error(make_run: MakeRun) -> None:
    lines = page("digits", [EvaluatedRun.read(make_run("run", 0, 0.2))])
    assert "±" not in "\n".join(lines)
    assert any("; one training seed." in line for line in lines)


def test_missing_values_give_an_empty_cell() -> None:
    assert with_error([1.0, None], ".1f") == ""
    assert with_error([None], ".1f") == ""
    assert with_error([1.0, 1.0], ".1f") == "1.0"


@pytest.mark.parametrize(
    ("seed", "overrides", "evaluation", "message"),
    [
        (0, [], {}, "train.seed: 0, 0: each run of a table must have a different seed"),
        (1, ["train.learning_rate=1e-3"], {}, "differs from .* in train.learning_rate"),
        (1, [], {"num_images": 500}, "was evaluated by digits, 500 images, noise seed 0, .* by digits, 2,000"),
        (1, [], {"student_sha256": "another"}, "its student is not evaluated; run `tokenleap evaluate"),
        (1, [], {"teacher_images": 50}, "was compared with 50 images of the teacher, .* with None"),
        (1, [], {"rows": [{"method": "real"}]}, "were evaluated with different methods"),
    ],
)
def test_runs_that_differ_are_refused(
    make_run: MakeRun, seed: int, overrides: list[str], evaluation: dict[str, Any], message: str
) -> None:
    folders = [make_run("first", 0, 0.2), make_run("second", seed, 0.3, *overrides, **evaluation)]
    with pytest.raises(Refused, match=message):
        page("digits", [EvaluatedRun.read(folder) for folder in folders])
    result = script("digits", *folders)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
