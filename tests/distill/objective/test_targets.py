"""Trajectory states and timesteps, which are a function of the pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.objective.targets import draw_timesteps, mix64, trajectory_states
from generate_pairs.teachers.base import TokenLayout

pytestmark = pytest.mark.quick

LAYOUT = TokenLayout((1, 4, 9))


def test_state_is_data_before_the_timestep_and_noise_after() -> None:
    noise_BLC = torch.randn(4, 14, 2, generator=torch.Generator().manual_seed(0))
    tokens_BL = torch.arange(14).repeat(4, 1)
    codebook_VC = torch.arange(28.0).view(14, 2)
    targets = trajectory_states(noise_BLC, tokens_BL, torch.tensor([0, 1, 2, 3]), codebook_VC, LAYOUT)
    for row, start in enumerate((0, 1, 5, 14)):
        assert torch.equal(targets.states_BLC[row, :start], codebook_VC[:start])
        assert torch.equal(targets.states_BLC[row, start:], noise_BLC[row, start:])
        assert targets.target_mask_BL[row].tolist() == [False] * start + [True] * (14 - start)


def test_timestep_depends_on_seed_epoch_and_pair_alone() -> None:
    index_B = np.arange(1000)
    epoch_B = np.zeros(1000, dtype=np.int64)
    drawn_B = draw_timesteps((0, 5), None, 7, epoch_B, index_B)
    shuffled_B = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(draw_timesteps((0, 5), None, 7, epoch_B, shuffled_B), drawn_B[shuffled_B])
    assert not np.array_equal(draw_timesteps((0, 5), None, 8, epoch_B, index_B), drawn_B)
    assert not np.array_equal(draw_timesteps((0, 5), None, 7, epoch_B + 1, index_B), drawn_B)


def test_timesteps_are_drawn_evenly() -> None:
    drawn_B = draw_timesteps((0, 3, 8), None, 0, np.zeros(30_000, dtype=np.int64), np.arange(30_000))
    counts = np.array([(drawn_B == t).sum() for t in (0, 3, 8)])
    # Four standard deviations of a binomial with n = 30,000 and p = 1/3.
    assert counts.sum() == 30_000
    assert np.abs(counts - 10_000).max() < 4 * np.sqrt(30_000 * 2 / 9)


def test_weights_say_how_often_a_timestep_is_drawn() -> None:
    index_B, epoch_B = np.arange(40_000), np.zeros(40_000, dtype=np.int64)
    drawn_B = draw_timesteps((0, 8), (3.0, 1.0), 0, epoch_B, index_B)
    # Four standard deviations of a binomial with n = 40,000 and p = 3/4.
    assert abs(int((drawn_B == 0).sum()) - 30_000) < 4 * np.sqrt(40_000 * 3 / 16)


def test_mix64_agrees_with_published_splitmix64() -> None:
    """The first outputs of SplitMix64 from state 1234567, as Vigna's splitmix64.c prints them."""
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + step * np.arange(3, dtype=np.uint64)
        words = mix64(states)
    assert words.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_golden_timesteps() -> None:
    """ORDER: a change here changes the inputs of a resumed training."""
    drawn_B = draw_timesteps((0, 5), None, 0, np.repeat([0, 1], 12), np.tile(np.arange(12), 2))
    assert "".join(str(t) for t in drawn_B) == GOLDEN


GOLDEN = "550505500555005055550505"
