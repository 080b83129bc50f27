"""Metrics for TensorBoard: they equal those of the log and of the report, and a resumed training has each step once."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure

from distill.training.metrics import join_metrics, tensorboard
from pipeline.report import training_charts
from pipeline.run_folder.results import read_metrics as read_run_metrics
from shards.core.errors import Refused

one_family = pytest.mark.parametrize("family", ["llamagen"], indirect=True)


class Killed(Exception):
    """Simulates a kill: nothing is saved."""


SETTINGS = {"num_steps": 9, "log_interval": 1, "tensorboard": True}


def kill_at_step_7(done: int, total: int, note: str) -> None:
    if done == 7:
        raise Killed


@one_family
def test_tensorboard_the_log_and_the_charts_agree_and_repeated_steps_appear_once(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        run(tmp_path, options={"report": kill_at_step_7}, **SETTINGS)
    run(tmp_path, **SETTINGS)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    join_metrics(tmp_path / "metrics", tmp_path / "metrics.parquet")
    log = read_run_metrics(tmp_path / "metrics.parquet")
    drawn: dict[str, Sequence[tuple[float, float]]] = {}
    monkeypatch.setattr(training_charts, "line_chart", lambda name, points: drawn.setdefault(name, points) and Figure())
    list(training_charts.training_charts(log))
    steps = log.pop("step")
    assert steps == list(range(1, 10))
    assert {name for name, values in log.items() if any(map(math.isfinite, values))} == set(events.Tags()["scalars"])
    for name in events.Tags()["scalars"]:
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        logged = [(step, value) for step, value in zip(steps, log[name], strict=True) if math.isfinite(value)]
        assert [step for step, _ in shown] == [step for step, _ in logged]
        # TensorBoard stores float32.
        assert [value for _, value in shown] == pytest.approx([value for _, value in logged], rel=1e-6)
        # Constant columns have no chart.
        assert drawn.get(name) == (logged if len({value for _, value in logged}) > 1 else None)


@one_family
def test_without_tensorboard_it_is_refused_before_anything_is_written(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Refused, match=r"pip install '\.\[tensorboard\]', or set it to false"):
        run(tmp_path, **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_if_disabled_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with tensorboard(tmp_path, 0, False, True) as board:
        assert board is None
    assert list(tmp_path.iterdir()) == []


def test_only_rank_0_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            opened.append(folder)

        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    for is_main in (False, True):
        with tensorboard(tmp_path, 0, True, is_main) as board:
            assert (board is not None) == is_main
        assert len(opened) == is_main
