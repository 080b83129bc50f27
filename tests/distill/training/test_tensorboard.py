"""Metrics for TensorBoard: they are readable, and a resumed training contains each step once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.training.metrics import read_metrics, tensorboard
from shards.core.errors import Refused

one_family = pytest.mark.parametrize("family", ["llamagen"], indirect=True)


class Killed(Exception):
    """Simulates a kill: nothing is saved."""


SETTINGS = {"num_steps": 9, "log_interval": 1, "tensorboard": True}


def kill_at_step_7(done: int, total: int, note: str) -> None:
    if done == 7:
        raise Killed


@one_family
def test_repeated_steps_appear_once(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        run(tmp_path, options={"report": kill_at_step_7}, **SETTINGS)
    run(tmp_path, **SETTINGS)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    log = read_metrics(tmp_path / "metrics").select(["step", "loss", "heldout_token_loss"]).to_pylist()
    assert [row["step"] for row in log] == list(range(1, 10))
    for name in ("loss", "heldout_token_loss"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        logged = [(row["step"], row[name]) for row in log if row[name] is not None]
        assert [step for step, _ in shown] == [step for step, _ in logged]
        assert [value for _, value in shown] == pytest.approx([value for _, value in logged], rel=1e-6)
    assert events.Tags()["scalars"]


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
