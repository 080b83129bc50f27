"""The flow map: carries the Gaussian noise of one position, deterministically, to one token.

Source N(0, I) at flow time 0, target sum_j p_j delta(c_j) at 1, straight paths. In u = t / (1 - t) and
w = x / (1 - t) the flow is dw/du = D(w; u) from w(0) = noise: there is no first or last sigma to choose.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from generate_pairs.compute.float32 import full_float32
from generate_pairs.flow_map.candidates import WholeCodebook, gather_rows, gather_support
from generate_pairs.flow_map.exponential_adams import adams_coefficients
from generate_pairs.flow_map.solver import LEAST_WEIGHT, STOP_SHARE, MappedTokens, solve
from shards.core.errors import Failed

# Gathering pays where at most one codebook row in so many is possible, and only in codebooks of some size.
GATHER_SHARE = 8
GATHER_MIN_VOCAB = 1024

# Numbers in a working array: 8 and 256 MiB; there are several.
CPU_NUMBERS = 2**21
GPU_NUMBERS = 2**26

# A GPU's kernel is checked with so many rows that leave a choice; of their tokens rounding may turn so many.
CHECKED_ROWS = 512
MOST_DIFFERING = 3

OTHER_TRITON = (
    "Another version of triton may do, or none: without it the map takes single steps, which is slower"
)


@lru_cache(maxsize=1)
def kernel_is_possible() -> bool:
    """Whether a GPU can map rows by one kernel; warns once where it cannot and will be slow."""
    missing = None
    if find_spec("triton") is None:
        missing = "the package triton"
    elif not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing = "a C compiler, which triton builds with"
    elif not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        missing = "Python's headers (python3-dev or the like), which triton builds with"
    if missing:
        warnings.warn(f"the flow map is slow on a GPU without {missing}: install it", stacklevel=2)
    return missing is None


class FlowMap:
    """Noise and log-probabilities to tokens: exponential Adams of third order, one evaluation of D a step.

    Deterministic, in float32, every row by itself. The codebook is centred and scaled once: the map is
    invariant to both, and float32 then resolves codebook rows down to about a thousandth of its extent. Rows
    closer together than that count as one point, and the likelier takes all.

    On a GPU one kernel takes all steps (`generate_pairs.flow_map.triton_kernel`), where there is what it needs.
    """

    def __init__(self, codebook_VC: Tensor, num_steps: int) -> None:
        """Prepares the map.

        Args:
            codebook_VC: The rows that the decoder uses, floating point, finite.
            num_steps: Evaluations of D at most, see `default_num_steps`.

        Raises:
            ValueError: If the codebook is not a finite (V, C) table or `num_steps` is below 1.
        """
        if codebook_VC.ndim != 2 or 0 in codebook_VC.shape or not codebook_VC.is_floating_point():
            found = f"{codebook_VC.dtype} {tuple(codebook_VC.shape)}"
            raise ValueError(f"the codebook must be a floating-point table (V, C), got {found}")
        if not bool(torch.isfinite(codebook_VC).all()):
            raise ValueError("the codebook holds NaN or infinite numbers")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.num_steps = num_steps
        self.vocab_size, self.codebook_dim = codebook_VC.shape
        predictor, corrector = adams_coefficients(num_steps)
        self._coefficients = predictor.tolist(), corrector.tolist()
        self._coefficient_tables = torch.from_numpy(predictor).float(), torch.from_numpy(corrector).float()
        self._codebook = WholeCodebook.of(_standardised(codebook_VC))
        self.to(codebook_VC.device)

    @property
    def device(self) -> torch.device:
        """Where the map computes, and where its inputs must lie."""
        return self._codebook.codebook_VC.device

    def to(self, device: torch.device | str) -> FlowMap:
        """Moves the map to a device, in place, and returns it."""
        self._num_checked, self._num_differing = 0, 0
        self._codebook = self._codebook.to(device)
        predictor_S3, corrector_S4 = self._coefficient_tables
        self._coefficient_tables = predictor_S3.to(device), corrector_S4.to(device)
        return self

    @torch.no_grad()
    def __call__(self, noise_NC: Tensor, log_probs_NV: Tensor, stop: bool = True) -> MappedTokens:
        """Maps N rows.

        Args:
            noise_NC: Gaussian noise, float16 or float32, taken as it is (the caller rounds to storage).
            log_probs_NV: Log-probabilities, float32, -inf where filtered out, normalised or not.
            stop: Whether a row ends as soon as its token is settled; False spends all steps on every row.

        Returns:
            The tokens, ties to the lowest index, and the evaluations of each row (0: p leaves no choice).

        Raises:
            ValueError: On a wrong shape, dtype or device; on a row with NaN or infinite noise, with NaN or
                +inf log-probabilities, or with no possible token: the message names the row.
            Failed: A GPU's kernel does not do what it should.
        """
        peak_N1 = self._checked(noise_NC, log_probs_NV)
        rows = noise_NC.float(), log_probs_NV, peak_N1
        if self.device.type == "cuda" and kernel_is_possible():
            # Where a kernel runs is the current device's matter.
            with torch.cuda.device(self.device):
                return self._by_checked_kernel(*rows, stop)
        return self._by_steps(*rows, stop)

    def _by_steps(self, noise_NC: Tensor, log_probs_NV: Tensor, peak_N1: Tensor, stop: bool) -> MappedTokens:
        """Maps rows, all of a batch taking a step at a time."""
        tokens_N = torch.empty(len(noise_NC), dtype=torch.int64, device=self.device)
        num_evaluations_N = torch.empty_like(tokens_N)
        with full_float32():
            for rows_M, support_size in self._batches(log_probs_NV):
                log_p_MV, noise_MC = log_probs_NV[rows_M] - peak_N1[rows_M], noise_NC[rows_M]
                if support_size is None:
                    mapped = solve(self._codebook, log_p_MV, noise_MC, *self._coefficients, stop)
                    tokens_N[rows_M] = mapped.tokens_N
                else:
                    support_MK, log_p_MK = gather_support(log_p_MV, support_size)
                    gathered = gather_rows(self._codebook.codebook_VC, support_MK, log_p_MK)
                    mapped = solve(gathered, log_p_MK, noise_MC, *self._coefficients, stop)
                    tokens_N[rows_M] = support_MK.gather(1, mapped.tokens_N[:, None]).squeeze(1)
                num_evaluations_N[rows_M] = mapped.num_evaluations_N
        return MappedTokens(tokens_N, num_evaluations_N)

    def _by_checked_kernel(
        self, noise_NC: Tensor, log_probs_NV: Tensor, peak_N1: Tensor, stop: bool
    ) -> MappedTokens:
        """Maps rows by the kernel; the first ones that this map sees also step by step, since compilers err.

        Raises:
            Failed: the kernel cannot be built, or takes other tokens.
        """
        rows = noise_NC, log_probs_NV, peak_N1
        if self._num_checked >= CHECKED_ROWS:
            return self._by_kernel(*rows, stop)
        try:
            mapped = self._by_kernel(*rows, stop)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise Failed(f"the flow map's kernel cannot be built ({reason}). {OTHER_TRITON}") from error
        some = slice(CHECKED_ROWS - self._num_checked)
        expected = self._by_steps(noise_NC[some], log_probs_NV[some], peak_N1[some], stop)
        self._num_differing += int((mapped.tokens_N[some] != expected.tokens_N).sum())
        self._num_checked += int((expected.num_evaluations_N > 0).sum())
        if self._num_differing > MOST_DIFFERING:
            raise Failed(
                f"the flow map's kernel takes other tokens than its single steps, {self._num_differing} in the first "
                f"{self._num_checked}: triton compiles it wrongly. {OTHER_TRITON}"
            )
        return mapped

    def _by_kernel(self, noise_NC: Tensor, log_probs_NV: Tensor, peak_N1: Tensor, stop: bool) -> MappedTokens:
        """Maps rows by one kernel, which takes all steps of a row."""
        # Only here: it imports triton.
        from generate_pairs.flow_map.triton_kernel import map_rows

        share_at_stop = STOP_SHARE if stop else 0.0
        narrow_size = self.vocab_size // GATHER_SHARE if self.vocab_size >= GATHER_MIN_VOCAB else 0
        given, at_once = (noise_NC, log_probs_NV, peak_N1), max(1, GPU_NUMBERS // self.vocab_size)
        parts = [
            map_rows(
                noise_MC,
                log_probs_MV,
                peak_M1,
                self._codebook.codebook_VC,
                *self._coefficient_tables,
                stop_share=share_at_stop,
                least_weight=LEAST_WEIGHT,
                narrow_size=narrow_size,
            )
            for noise_MC, log_probs_MV, peak_M1 in zip(
                *(tensor.split(at_once) for tensor in given), strict=True
            )
        ]
        tokens_N, num_evaluations_N = map(torch.cat, zip(*parts, strict=True))
        return MappedTokens(tokens_N, num_evaluations_N)

    def _checked(self, noise_NC: Tensor, log_probs_NV: Tensor) -> Tensor:
        """Refuses what cannot be mapped; returns the largest log-probability of each row, (N, 1)."""
        num_rows = noise_NC.shape[0] if noise_NC.ndim else 0
        for name, tensor, width, dtypes in (
            ("noise", noise_NC, self.codebook_dim, (torch.float16, torch.float32)),
            ("log_probs", log_probs_NV, self.vocab_size, (torch.float32,)),
        ):
            if tuple(tensor.shape) != (num_rows, width):
                raise ValueError(f"{name} must have shape ({num_rows}, {width}), got {tuple(tensor.shape)}")
            if tensor.dtype not in dtypes:
                raise ValueError(f"{name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
            if tensor.device != self.device:
                raise ValueError(f"{name} lies on {tensor.device}, the flow map on {self.device}")
        peak_N1 = log_probs_NV.amax(dim=1, keepdim=True)
        peak_N = peak_N1.squeeze(1)
        wrong = {
            "noise holds NaN or infinite numbers": ~torch.isfinite(noise_NC).all(dim=1),
            "log_probs leaves no token possible (all are -inf)": peak_N == -torch.inf,
            "log_probs holds NaN or +inf": ~torch.isfinite(peak_N),
        }
        # One question for all: a GPU has to be waited for.
        if bool(torch.stack(list(wrong.values())).any()):
            for what, bad_N in wrong.items():
                _refuse_first(bad_N, what)
        return peak_N1

    def _batches(self, log_probs_NV: Tensor) -> Iterator[tuple[Tensor, int | None]]:
        """Cuts the rows into batches: their indices, and how many codebook rows each gathers (None: all)."""
        budget = CPU_NUMBERS if self.device.type == "cpu" else GPU_NUMBERS
        every_N = torch.arange(len(log_probs_NV), device=self.device)
        if self.vocab_size < GATHER_MIN_VOCAB:
            wide_M, narrow_M, sizes = every_N, every_N[:0], []
        else:
            # A row's own support decides, so that a row is computed alike whatever rows come with it.
            size_N = (log_probs_NV > -torch.inf).sum(dim=1, dtype=torch.int32)
            is_narrow_N = size_N * GATHER_SHARE <= self.vocab_size
            wide_M, narrow_M = every_N[~is_narrow_N], every_N[is_narrow_N]
            narrow_M = narrow_M[size_N[narrow_M].argsort(descending=True, stable=True)]
            sizes = size_N[narrow_M].tolist()
        for rows in wide_M.split(max(1, budget // self.vocab_size)):
            if len(rows) > 0:
                yield rows, None
        start = 0
        while start < len(sizes):
            largest = max(self.vocab_size, sizes[start] * (self.codebook_dim + 2))
            stop = start + max(1, budget // largest)
            yield narrow_M[start:stop], sizes[start]
            start = stop


def _standardised(codebook_VC: Tensor) -> Tensor:
    """The codebook about its mean and with a mean square of one, computed in float64, as float32."""
    rows_VC = codebook_VC.detach().cpu().double()
    rows_VC = rows_VC - rows_VC.mean(dim=0)
    extent = rows_VC.square().mean().sqrt().item()
    return (rows_VC / extent if extent > 0 else rows_VC).float()


def _refuse_first(bad_N: Tensor, what: str) -> None:
    if bool(bad_N.any()):
        raise ValueError(f"row {int(bad_N.nonzero()[0])}: {what}")
