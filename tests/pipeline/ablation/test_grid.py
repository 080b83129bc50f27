"""The grid: parsing of sizes and sweeps, and the configurations and names of cells."""

from __future__ import annotations

import re

import pytest

from pipeline.ablation.grid import (
    Axes,
    Cell,
    cell_name,
    eval_interval,
    make_cells,
    parse_sizes,
    parse_sweep,
    swept_values,
)
from pipeline.config.run_config import RunConfig, compose
from shards.core.errors import Refused

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def base() -> RunConfig:
    return compose(
        "digits", ["pairs.num_pairs=40000", "train.num_steps=1000", "train.batch_size=128", "train.warmup_steps=100"]
    )


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("2500", (2500,)),
        ("2500,5000", (2500, 5000)),
        (" 5000 , 2_500", (5000, 2500)),
        ("0.5,1.0", (20_000, 40_000)),
        ("25%,100%,0.5", (10_000, 40_000, 20_000)),
        ("12.5%", (5_000,)),
        (".25", (10_000,)),
        ("1", (1,)),
    ],
)
def test_sizes_are_counts_or_shares(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_sizes(text, available=40_000) == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "'many' is neither a number of pairs"),
        ("", "'' is neither"),
        ("-5", "'-5' is neither"),
        ("1e3", "'1e3' is neither"),
        ("2500_", "'2500_' is neither"),
        ("2__500", "'2__500' is neither"),
        ("2500,", "'' is neither"),
        ("2500,2500", "names 2500 twice"),
        ("20000,50%", "names 20000 twice"),
        ("0%", "0% is not a valid share"),
        ("0.0", "0.0 is not a valid share"),
        ("0.001%", "0.001% of 40000 pairs is less than one pair"),
        ("150%", "150% is not a valid share"),
        ("1.5", "1.5 is not a valid share"),
    ],
)
def test_other_sizes_are_refused(text: str, message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        parse_sizes(text, available=40_000)


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("train.learning_rate=1e-3,3e-3", "train.learning_rate", (1e-3, 3e-3)),
        ("student.split = 4 , 16", "student.split", (4, 16)),
        ("student.initialise=teacher,random", "student.initialise", ("teacher", "random")),
    ],
)
def test_a_sweep_is_a_key_and_its_values(text: str, key: str, values: tuple[object, ...]) -> None:
    assert parse_sweep(text) == (key, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.learning_rate", "write KEY=VALUE,VALUE"),
        ("train.learning_rate=", "write KEY=VALUE,VALUE"),
        ("train.learning_rat=1,2", "the nearest is train.learning_rate"),
        ("train.learning_rate=1e-3,0.001", "names a value twice"),
        ("teacher.top_k=1,2", "it changes the pairs"),
        ("pairs.seed=1,2", "it changes the pairs"),
        ("pairs.num_pairs=1,2", "use --sizes for it"),
        ("train.seed=1,2", "use --seeds for it"),
        ("student.timesteps=0,4", "use --timesteps for it"),
        ("train.num_steps=1,2", "use --num-steps and --match for it"),
        ("evaluation.num_images=100,200", "all cells use the same evaluation"),
        ("train.log_interval=1,2", "changes nothing that is measured"),
        ("cluster.jobs=1,2", "changes nothing that is measured"),
        ("train.betas=0.9,0.95", "its values are lists"),
    ],
)
def test_other_sweeps_are_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        parse_sweep(text)


def test_a_complete_grid_of_one_seed_comes_before_the_next_seed(base: RunConfig) -> None:
    axes = Axes((5000, 2500), seeds=2, timesteps=((0, 4), (0, 8)))
    cells = make_cells(base, axes, "steps")
    order = [(cell.config.train.seed, cell.config.student.timesteps, cell.size) for cell in cells]
    assert order == [
        (seed, timesteps, size) for seed in (0, 1) for timesteps in ((0, 4), (0, 8)) for size in (2500, 5000)
    ]
    assert cells[0].name == "size-2500_timesteps-0-4_seed-0"
    assert {cell.config.train.num_steps for cell in cells} == {1000}


def test_a_cell_differs_from_the_base_only_in_its_axes(base: RunConfig) -> None:
    axes = Axes((2500,), seeds=1, swept={"train.learning_rate": (1e-3,), "student.split": (16,)})
    (cell,) = make_cells(base, axes, "steps")
    expected = base.model_copy(
        update={
            "pairs": base.pairs.model_copy(update={"num_pairs": 2500}),
            "train": base.train.model_copy(update={"learning_rate": 1e-3}),
        }
    )
    assert cell.config == expected
    # Values of the base are not in the name, so that a sweep over them uses the existing cell.
    assert cell.name == "size-2500_timesteps-0-8_seed-0_train.learning_rate-0.001"
    assert swept_values(base, cell.config) == {"train.learning_rate": 1e-3}


def test_matching_epochs_scales_steps_and_warmup(base: RunConfig) -> None:
    cells = make_cells(base, Axes((10_000, 40_000, 80_000)), "epochs")
    assert [cell.config.train.num_steps for cell in cells] == [250, 1000, 2000]
    assert [cell.config.train.warmup_steps for cell in cells] == [25, 100, 200]
    assert {cell.epochs for cell in cells} == {3.2}
    assert [swept_values(base, cell.config) for cell in cells] == [{}, {}, {}]


def test_matching_epochs_gives_larger_batches_fewer_steps(base: RunConfig) -> None:
    swept = {"train.batch_size": (64, 128, 256)}
    cells = make_cells(base, Axes((20_000,), swept=swept), "epochs")
    assert [cell.config.train.num_steps for cell in cells] == [1000, 500, 250]
    assert [cell.config.train.warmup_steps for cell in cells] == [100, 50, 25]
    assert {cell.epochs for cell in cells} == {3.2}
    equal_steps = make_cells(base, Axes((20_000,), swept=swept), "steps")
    assert {cell.config.train.num_steps for cell in equal_steps} == {1000}


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        ({"train.learning_rate": (-1,)}, "train.learning_rate cannot be -1: it is a number, above 0"),
        ({"train.learning_rate": (1, 1.0)}, "two cells are both size-2500_timesteps-0-8_seed-0"),
        ({"train.threads": ("two",)}, "train.threads cannot be 'two'"),
    ],
)
def test_invalid_or_repeated_values_are_refused(
    base: RunConfig, swept: dict[str, tuple[object, ...]], message: str
) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        make_cells(base, Axes((2500,), swept=swept), "steps")


def test_a_name_is_a_valid_folder_for_any_value(base: RunConfig) -> None:
    config = base.model_copy(
        update={"student": base.student.model_copy(update={"initialise": "../x y/*"}), "description": "other"}
    )
    assert cell_name(base, config) == "size-40000_timesteps-0-8_seed-0_student.initialise-..-x-y--"


@pytest.mark.parametrize(("steps", "every", "interval"), [(1000, None, 100), (7, None, 1), (1001, None, 101), (9, 4, 4)])
def test_a_curve_has_ten_points_by_default(base: RunConfig, steps: int, every: int | None, interval: int) -> None:
    config = base.model_copy(update={"train": base.train.model_copy(update={"num_steps": steps})})
    assert eval_interval(config, every) == interval
    assert Cell("x", config).epochs == steps * 128 / 40_000
