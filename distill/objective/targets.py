"""The student's inputs and targets for pairs and timesteps, as pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from generate_pairs.teachers.base import TokenLayout


@dataclass(frozen=True)
class Targets:
    """The student's inputs for a batch; `target_mask_BL` is True where a token has to be predicted."""

    states_BLC: Tensor
    timestep_B: Tensor
    target_mask_BL: Tensor


def trajectory_states(
    noise_BLC: Tensor, tokens_BL: Tensor, timestep_B: Tensor, codebook_VC: Tensor, layout: TokenLayout
) -> Targets:
    """States X_t of the trajectory (arXiv 2412.17153, Figure 6): `timestep_B` AR steps of data, then noise."""
    step_of_token_L = torch.tensor(layout.step_of_token, device=tokens_BL.device)
    target_mask_BL = step_of_token_L >= timestep_B[:, None]
    states_BLC = torch.where(target_mask_BL[:, :, None], noise_BLC, codebook_VC[tokens_BL])
    return Targets(states_BLC, timestep_B, target_mask_BL)


def draw_timesteps(
    timesteps: tuple[int, ...],
    weights: tuple[float, ...] | None,
    seed: int,
    epoch_B: npt.NDArray[np.int64],
    index_B: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Draw a timestep for each pair, a function of (seed, epoch, pair_index) only. Changing it breaks: ORDER.

    `weights` are relative frequencies, None for equal ones; `epoch_B` counts earlier passes over the pairs.
    """
    with np.errstate(over="ignore"):
        word_B = mix64(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15))
        word_B = mix64(word_B ^ epoch_B.astype(np.uint64))
        word_B = mix64(word_B ^ index_B.astype(np.uint64))
    # The upper 53 bits convert exactly to a float64 in [0, 1).
    uniform_B = (word_B >> np.uint64(11)).astype(np.float64) * 2.0**-53
    shares = np.asarray(weights or (1.0,) * len(timesteps), dtype=np.float64)
    limits = np.cumsum(shares) / shares.sum()
    return np.asarray(timesteps, dtype=np.int64)[np.searchsorted(limits[:-1], uniform_B, side="right")]


def mix64(word: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a pseudorandom bijection of 64-bit words."""
    word = np.asarray(word, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
