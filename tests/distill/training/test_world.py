"""The number of processes may change between runs: pairs and losses are the same. If one process fails, all end."""

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
"""Number of processes of each run."""


def losses(out: Path) -> np.ndarray:
    """Losses of all steps."""
    table = read_metrics(out / "metrics")
    assert table["step"].to_pylist() == list(range(1, len(table) + 1))
    return table["loss"].to_numpy()


def train_in_turn(
    forked: Any, arguments: list[str], stops: list[int], after_run: Callable[[int], None] = lambda _: None
) -> list[list[int]]:
    """Train with each number of `WORLDS`; a signal to one process stops each run. Returns the batches."""
    batches: list[list[int]] = []
    for processes, stop in zip(WORLDS, stops, strict=True):
        ended = forked(processes, arguments, signalled=processes - 1, after=stop)
        assert ended.codes == [0 if stop == stops[-1] else 143] * processes, ended.output(0)
        batches += ended.batches(BATCH)
        after_run(stop)
    return batches


@pytest.mark.parametrize("family", ["llamagen", pytest.param("var", marks=pytest.mark.slow)], indirect=True)
def test_with_1_2_4_and_1_processes_pairs_and_losses_are_the_same(
    forked: Any, distilling: Callable[..., list[str]], tmp_path: Path
) -> None:
    changing, alone = tmp_path / "changing", tmp_path / "alone"
    settings = {"num_steps": 200, "precision": "float64", "schedule": "constant", "checkpoint_interval": 200}
    batches = train_in_turn(forked, distilling(changing, **settings), [50, 100, 150, 200])
    ended = forked(1, distilling(alone, **settings))
    assert ended.codes == [0], ended.output(0)
    assert batches == ended.batches(BATCH)
    assert len(batches) == 200
    assert len({tuple(batch) for batch in batches}) == 200
    np.testing.assert_allclose(losses(changing), losses(alone), rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", ["llamagen", pytest.param("var", marks=pytest.mark.slow)], indirect=True)
def test_after_each_change_the_losses_are_those_of_a_single_process_that_resumes(
    forked: Any, distilling: Callable[..., list[str]], tmp_path: Path
) -> None:
    out, stops, settings = tmp_path / "out", [20, 40, 60, 80], {"num_steps": 80, "checkpoint_interval": 80}
    train_in_turn(
        forked,
        distilling(out, **settings),
        stops,
        lambda stop: shutil.copytree(out, tmp_path / f"copy-{stop}"),
    )
    for processes, (start, stop) in zip(WORLDS[1:], pairwise(stops), strict=True):
        copy = tmp_path / f"copy-{start}"
        ended = forked(1, distilling(copy, **settings), signalled=0, after=stop)
        assert ended.codes == [0 if stop == 80 else 143], ended.output(0)
        alone, together = losses(copy)[start:stop], losses(out)[start:stop]
        assert len(alone) == len(together) == 20
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=0)
        if processes == 4:
            assert (together != alone).any(), "four processes round like one: nothing was summed"


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failing_process_ends_the_others_with_a_message_and_the_same_command_resumes(
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
    assert ended.output(failing) == (
        "",
        f"tokenleap, process {failing} of 2: pairs-000002.tar is damaged\n",
    )
    other = 1 - failing
    stdout, stderr = ended.output(other)
    assert stdout == ""
    (message,) = [line for line in stderr.splitlines() if line.startswith("tokenleap")]
    assert message.startswith(f"tokenleap, process {other} of 2: this process lost its connection to the others (")
    assert message.endswith("the same command resumes from the last checkpoint")
    assert "Traceback" not in stderr
    assert not (out / "student.safetensors").exists()
    for folder in (out, whole):
        ended = forked(2, distilling(folder, **settings))
        assert ended.codes == [0, 0], ended.output(0)
    assert left_behind(out) == left_behind(whole)


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_only_rank_0_prints(forked: Any, distilling: Callable[..., list[str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = forked(4, distilling(out, num_steps=2))
    (closing,) = ended.output(0)[0].splitlines()
    assert closing.startswith(f"{out}: 2 steps are done, 2 of them now in ")
    assert [ended.output(rank) for rank in (1, 2, 3)] == [("", "")] * 3


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_a_batch_that_the_processes_cannot_share_is_refused(
    forked: Any, distilling: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = forked(5, distilling(out))
    assert ended.codes == [2] * 5
    assert ended.output(0) == (
        "",
        "tokenleap, process 0 of 5: a batch of 24 cannot be cut into 5 equal parts, one for each process: start 4, or "
        "take batches of 25 pairs\n",
    )
    assert not list(out.iterdir())
