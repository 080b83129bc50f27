"""benchmarks/results_table.py on made-up runs: means and standard errors by hand, commands, and what is no one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from results_table import Judged, main, page, table, with_error

from pipeline.config.run_config import compose
from pipeline.run_folder.run_dir import claim
from shards.core.errors import Refused

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Founds a run of the preset digits and says how it was judged."""

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
            },
            {
                "method": "student-1",
                "num_steps": 1,
                "num_parameters": 1_100_000,
                "frechet_distance": distance,
                "token_match": distance / 2,
                "seconds_per_image": {"1": 0.008, "64": 0.001 * (1 + seed)},
            },
        ]
        judged = {"student_sha256": name, "protocol": "digits", "num_images": 2000, "seed": 0, "rows": rows}
        run_dir.evaluation.write_text(json.dumps({**judged, **evaluation}))
        return run_dir.root

    return make


def script(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_table_has_means_and_standard_errors(make_run: MakeRun) -> None:
    runs = [
        Judged.read(make_run(f"run-{seed}", seed, distance)) for seed, distance in enumerate((0.2, 0.4, 0.6))
    ]
    header, rows = table(runs)
    assert header == [
        *("method", "steps", "parameters", "Fréchet distance", "token match"),
        *("ms/image, batch 1", "ms/image, batch 64", "speed-up, batch 64"),
    ]
    # Of 0.2, 0.4, 0.6: standard deviation 0.2, over the root of three 0.115. Speed-ups 4, 2 and 4/3.
    assert rows[2] == [
        *("student-1", "1", "1.1M", "0.400 ± 0.115", "0.200 ± 0.058", "8", "2 ± 0.577", "2.44 ± 0.801"),
    ]
    assert rows[1] == ["teacher", "16", "1M", "0.090", "", "80", "4", "1"]
    assert rows[0] == ["real", "", "", "0.100", "", "", "", ""]


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
    assert (
        "Protocol digits, 2,000 images, noise seed 0; mean ± standard error over 2 training seeds (0, 1)."
        in lines
    )
    assert sum(line.startswith("| ") for line in lines) == 2 + 3


def test_a_run_that_was_judged_again_has_that_command_too(make_run: MakeRun) -> None:
    run = make_run("run", 0, 0.2, repeats=3, num_images=500)
    lines = page("digits", [Judged.read(run)])
    assert lines[1:3] == [
        f"tokenleap run digits --out {run}",
        f"tokenleap evaluate {run} --num-images 500 --repeats 3",
    ]
    assert any(line.startswith("Protocol digits, 500 images, noise seeds 0 to 2;") for line in lines)


def test_of_one_run_there_is_no_error(make_run: MakeRun) -> None:
    lines = page("digits", [Judged.read(make_run("run", 0, 0.2))])
    assert "±" not in "\n".join(lines)
    assert any("; one training seed." in line for line in lines)


def test_values_that_a_run_lacks_are_left_out() -> None:
    assert with_error([1.0, None], str) == ""
    assert with_error([None], str) == ""
    assert with_error([1.0, 1.0], str) == "1.0"


@pytest.mark.parametrize(
    ("seed", "overrides", "judged", "message"),
    [
        (0, [], {}, "train.seed: 0, 0: each run of a table needs its own"),
        (1, ["train.learning_rate=1e-3"], {}, "differs from .* in train.learning_rate"),
        (1, [], {"num_images": 500}, "was judged by digits, 500 images, noise seed 0, .* by digits, 2,000"),
        (1, [], {"student_sha256": "another"}, "its student is not judged; `tokenleap evaluate"),
        (1, [], {"teacher_images": 50}, "was held against 50 images of the teacher, .* against None"),
        (1, [], {"rows": [{"method": "real"}]}, "were judged with different methods"),
    ],
)
def test_runs_that_are_no_one_table_are_refused(
    make_run: MakeRun, seed: int, overrides: list[str], judged: dict[str, Any], message: str
) -> None:
    folders = [make_run("first", 0, 0.2), make_run("second", seed, 0.3, *overrides, **judged)]
    with pytest.raises(Refused, match=message):
        page("digits", [Judged.read(folder) for folder in folders])
    result = script("digits", *folders)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
