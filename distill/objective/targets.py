"""From a pair and a timestep to what the student is shown and asked: pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from generate_pairs.teachers.base import TokenLayout


@dataclass(frozen=True)
class Targets:
    """A batch as the student sees it: `target_mask_BL` is True where a token has to be predicted."""

    states_BLC: Tensor
    timestep_B: Tensor
    target_mask_BL: Tensor


def trajectory_states(
    noise_BLC: Tensor, tokens_BL: Tensor, timestep_B: Tensor, codebook_VC: Tensor, layout: TokenLayout
) -> Targets:
    """States X_t of the trajectory (arXiv 2412.17153, Figure 6), t AR steps of data and noise after them.

    Args:
        noise_BLC: the pairs' noise, float32.
        tokens_BL: the pairs' tokens.
        timestep_B: AR steps already data, int64.
        codebook_VC: rows the decoder reads.
        layout: the teacher's token layout.
    """
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
    """One timestep for each pair, a function of (seed, epoch, pair_index) alone. Changing it breaks: ORDER.

    The same pair gets the same timestep whatever batch, rank or process it is seen in.

    Args:
        timesteps: what is drawn from.
        weights: how often each is drawn; None for all alike.
        seed: of the training.
        epoch_B: how often the pairs had been gone through before.
        index_B: pair_index.
    """
    with np.errstate(over="ignore"):
        word_B = mix64(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15))
        word_B = mix64(word_B ^ epoch_B.astype(np.uint64))
        word_B = mix64(word_B ^ index_B.astype(np.uint64))
    # The upper 53 bits are a float64 in [0, 1) without rounding.
    uniform_B = (word_B >> np.uint64(11)).astype(np.float64) * 2.0**-53
    shares = np.asarray(weights or (1.0,) * len(timesteps), dtype=np.float64)
    limits = np.cumsum(shares) / shares.sum()
    return np.asarray(timesteps, dtype=np.int64)[np.searchsorted(limits[:-1], uniform_B, side="right")]


def mix64(word: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that looks random."""
    word = np.asarray(word, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
