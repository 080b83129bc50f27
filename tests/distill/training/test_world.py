"""A training may change how many processes it has: the same pairs, the same losses; and one fails for all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.training.metrics import read_metrics

BATCH = 24
WORLDS = (1, 2, 4, 1)
"""How many processes, in turn."""


def losses(out: Path) -> np.ndarray:
    """Of every step."""
    table = read_metrics(out / "metrics")
    assert table["step"].to_pylist() == list(range(1, len(table) + 1))
    return table["loss"].to_numpy()


def in_turn(
    forked: Any, arguments: list[str], stops: list[int], copied: Callable[[int], None] = lambda _: None
) -> list[list[int]]:
    """Train in one world after another, each stopped by a signal to one of its processes; returns the batches."""
    batches: list[list[int]] = []
    for processes, stop in zip(WORLDS, stops, strict=True):
        ended = forked(processes, arguments, signalled=processes - 1, after=stop)
        assert ended.codes == [0 if stop == stops[-1] else 143] * processes, ended.said(0)
        batches += ended.batches(BATCH)
        copied(stop)
    return batches


@pytest.mark.parametrize("family", ["llamagen", pytest.param("var", marks=pytest.mark.slow)], indirect=True)
def test_in_1_2_4_and_1_processes_it_sees_the_same_pairs_and_has_the_same_losses(
    forked: Any, distilling: Callable[..., list[str]], tmp_path: Path
) -> None:
    changing, alone = tmp_path / "changing", tmp_path / "alone"
    settings = {"num_steps": 200, "precision": "float64", "schedule": "constant", "checkpoint_interval": 200}
    batches = in_turn(forked, distilling(changing, **settings), [50, 100, 150, 200])
    ended = forked(1, distilling(alone, **settings))
    assert ended.codes == [0], ended.said(0)
    assert batches == ended.batches(BATCH)
    assert len(batches) == 200
    assert len({tuple(batch) for batch in batches}) == 200
    np.testing.assert_allclose(losses(changing), losses(alone), rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", ["llamagen", pytest.param("var", marks=pytest.mark.slow)], indirect=True)
def test_after_each_change_the_losses_are_those_of_one_process_that_goes_on_alone(
    forked: Any, distilling: Callable[..., list[str]], tmp_path: Path
) -> None:
    out, stops, settings = tmp_path / "out", [20, 40, 60, 80], {"num_steps": 80, "checkpoint_interval": 80}
    in_turn(
        forked,
        distilling(out, **settings),
        stops,
        lambda stop: shutil.copytree(out, tmp_path / f"copy-{stop}"),
    )
    for processes, (start, stop) in zip(WORLDS[1:], pairwise(stops), strict=True):
        copy = tmp_path / f"copy-{start}"
        ended = forked(1, distilling(copy, **settings), signalled=0, after=stop)
        assert ended.codes == [0 if stop == 80 else 143], ended.said(0)
        alone, together = losses(copy)[start:stop], losses(out)[start:stop]
        assert len(alone) == len(together) == 20
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=0)
        if processes == 4:
            assert (together != alone).any(), "four processes round as one does: nothing was summed"


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_ends_the_others_with_a_message_and_the_same_command_goes_on(
    forked: Any,
    distilling: Callable[..., list[str]],
    left_behind: Callable[[Path], Mapping[str, object]],
    tmp_path: Path,
    failing: int,
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    settings = {"num_steps": 6, "checkpoint_interval": 2}
    ended = forked(2, distilling(out, **settings), failing=failing, after=5)
    assert ended.codes == [1, 1]
    assert ended.said(failing) == (
        "",
        f"tokenleap, process {failing} of 2: pairs-000002.tar is damaged\n",
    )
    other = 1 - failing
    said, complained = ended.said(other)
    assert said == ""
    (message,) = [line for line in complained.splitlines() if line.startswith("tokenleap")]
    assert message.startswith(f"tokenleap, process {other} of 2: this process lost the others (")
    assert message.endswith("the same command goes on from the last checkpoint")
    assert "Traceback" not in complained
    assert not (out / "student.safetensors").exists()
    for folder in (out, whole):
        ended = forked(2, distilling(folder, **settings))
        assert ended.codes == [0, 0], ended.said(0)
    assert left_behind(out) == left_behind(whole)


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_only_the_first_process_speaks(
    forked: Any, distilling: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = forked(4, distilling(out, num_steps=2))
    (closing,) = ended.said(0)[0].splitlines()
    assert closing.startswith(f"{out}: 2 steps in ")
    assert [ended.said(rank) for rank in (1, 2, 3)] == [("", "")] * 3


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_a_batch_that_the_processes_cannot_share_is_refused(
    forked: Any, distilling: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = forked(5, distilling(out))
    assert ended.codes == [2] * 5
    assert ended.said(0) == (
        "",
        "tokenleap, process 0 of 5: a batch of 24 cannot be cut into 5 equal shares, one for each process: start 4, or "
        "take batches of 25 pairs\n",
    )
    assert not list(out.iterdir())
