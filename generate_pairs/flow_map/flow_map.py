"""The flow map: it carries the Gaussian noise eps of one position, deterministically, to one token.

At one position the teacher gives probabilities p_j over the codebook rows c_j. The flow starts from N(0, I) at flow
time t = 0, ends in sum_j p_j delta(c_j) at t = 1, and has straight paths:

    (1)  x_t = (1 - t) eps + t c
    (2)  pi_j = softmax_j( log p_j - |x - t c_j|^2 / (2 (1 - t)^2) )     weight of row j
    (3)  D(x, t) = sum_j pi_j c_j                                        denoiser
    (4)  dx/dt = v(x, t) = (D - x) / (1 - t)                             velocity

In u = t / (1 - t) and w = x / (1 - t), which need no first or last sigma, this is

    (5)  dw/du = D(w, u) = sum_j pi_j c_j,  w(0) = eps
    (6)  pi_j = softmax_j( log p_j + u <w, c_j> - u^2 |c_j|^2 / 2 )

and in y = w / u and sigma = 1 / u it is dy / dlog(sigma) = y - D. The token is the row of the largest weight for large
u. The map carries N(0, I) exactly to p; in one dimension it is the quantile map.

Equation (7), the unit of length of each row, is in `solver.py`; (8), the steps, is in `exponential_adams.py`.
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
from generate_pairs.flow_map.candidates import FullCodebook, gather_rows, gather_support
from generate_pairs.flow_map.exponential_adams import adams_coefficients
from generate_pairs.flow_map.solver import LEAST_WEIGHT, STOP_SHARE, MappedTokens, solve
from shards.core.errors import Failed

# Gathering is faster if at most V / GATHER_SHARE tokens are possible, and only in codebooks of some size.
GATHER_SHARE = 8
GATHER_MIN_VOCAB = 1024

# Numbers in one working array, of which there are several: 8 and 256 MiB.
CPU_NUMBERS = 2**21
GPU_NUMBERS = 2**26

# The GPU kernel is checked on this many rows with a choice; rounding may change at most this many tokens.
CHECKED_ROWS = 512
MOST_DIFFERING = 3

OTHER_TRITON = "Install another version of triton, or none: the map then runs step by step, which is slower"


@lru_cache(maxsize=1)
def kernel_is_possible() -> bool:
    """Whether triton can build the GPU kernel; warns once if something is missing."""
    missing = None
    if find_spec("triton") is None:
        missing = "the package triton"
    elif not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing = "a C compiler, which triton builds with"
    elif not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        missing = "Python's headers (python3-dev or similar), which triton builds with"
    if missing:
        warnings.warn(f"the flow map is slow on a GPU without {missing}: install it", stacklevel=2)
    return missing is None


class FlowMap:
    """Maps noise and log-probabilities to tokens by `solver.solve`, one evaluation of D per step.

    It is deterministic, computes in float32, and maps every row independently of the others. The codebook is centred
    and scaled once: the map is invariant to both, and float32 then resolves codebook rows down to about a thousandth
    of its extent. Rows closer together than that count as one point, and the most probable of them takes all.

    On a GPU, one kernel runs all steps (`triton_kernel.py`) if triton can build it.
    """

    def __init__(self, codebook_VC: Tensor, num_steps: int) -> None:
        """Prepare the map for the rows that the decoder uses and at most `num_steps` evaluations of D.

        Raises:
            ValueError: The codebook is not a finite floating-point (V, C) table, or `num_steps` is below 1.
        """
        if codebook_VC.ndim != 2 or 0 in codebook_VC.shape or not codebook_VC.is_floating_point():
            actual = f"{codebook_VC.dtype} {tuple(codebook_VC.shape)}"
            raise ValueError(f"the codebook must be a floating-point table (V, C), got {actual}")
        if not bool(torch.isfinite(codebook_VC).all()):
            raise ValueError("the codebook contains NaN or infinite numbers")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.num_steps = num_steps
        self.vocab_size, self.codebook_dim = codebook_VC.shape
        predictor, corrector = adams_coefficients(num_steps)
        self._coefficients = predictor.tolist(), corrector.tolist()
        self._coefficient_tables = torch.from_numpy(predictor).float(), torch.from_numpy(corrector).float()
        self._codebook = FullCodebook.of(_standardised(codebook_VC))
        self.to(codebook_VC.device)

    @property
    def device(self) -> torch.device:
        """Device of the map and of its inputs."""
        return self._codebook.codebook_VC.device

    def to(self, device: torch.device | str) -> FlowMap:
        """Move the map to a device, in place, and return it."""
        self._num_checked, self._num_differing = 0, 0
        self._codebook = self._codebook.to(device)
        predictor_S3, corrector_S4 = self._coefficient_tables
        self._coefficient_tables = predictor_S3.to(device), corrector_S4.to(device)
        return self

    @torch.no_grad()
    def __call__(self, noise_NC: Tensor, log_probs_NV: Tensor, stop: bool = True) -> MappedTokens:
        """Map N rows.

        Args:
            noise_NC: Gaussian noise, float16 or float32, used unchanged (the caller rounds it to storage).
            log_probs_NV: Log-probabilities, float32, -inf for removed tokens, normalised or not.
            stop: Whether a row stops as soon as its token is settled; False runs all steps for every row.

        Returns:
            The tokens, ties to the lowest index, and the number of evaluations per row. It is 0 if only one token is
            possible.

        Raises:
            ValueError: Wrong shape, dtype or device; or a row has NaN or infinite noise, NaN or +inf
                log-probabilities, or no possible token. The message contains the index of the row.
            Failed: The GPU kernel cannot be built or gives other tokens than `solver.solve`.
        """
        peak_N1 = self._check_rows(noise_NC, log_probs_NV)
        rows = noise_NC.float(), log_probs_NV, peak_N1
        if self.device.type == "cuda" and kernel_is_possible():
            # A triton kernel runs on the current device.
            with torch.cuda.device(self.device):
                return self._by_checked_kernel(*rows, stop)
        return self._by_steps(*rows, stop)

    def _by_steps(self, noise_NC: Tensor, log_probs_NV: Tensor, peak_N1: Tensor, stop: bool) -> MappedTokens:
        """Map rows by `solver.solve`, batch by batch."""
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

    def _by_checked_kernel(self, noise_NC: Tensor, log_probs_NV: Tensor, peak_N1: Tensor, stop: bool) -> MappedTokens:
        """Map rows by the kernel; check the first `CHECKED_ROWS` against `_by_steps`, as compilers have bugs.

        Raises:
            Failed: The kernel cannot be built, or it gives other tokens.
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
        checked = slice(CHECKED_ROWS - self._num_checked)
        expected = self._by_steps(noise_NC[checked], log_probs_NV[checked], peak_N1[checked], stop)
        self._num_differing += int((mapped.tokens_N[checked] != expected.tokens_N).sum())
        self._num_checked += int((expected.num_evaluations_N > 0).sum())
        if self._num_differing > MOST_DIFFERING:
            raise Failed(
                f"the flow map's kernel gives other tokens than its single steps, {self._num_differing} in the "
                f"first {self._num_checked}: triton compiles it wrongly. {OTHER_TRITON}"
            )
        return mapped

    def _by_kernel(self, noise_NC: Tensor, log_probs_NV: Tensor, peak_N1: Tensor, stop: bool) -> MappedTokens:
        """Map rows by one kernel, which runs all steps of a row."""
        # Imported here because it imports triton.
        from generate_pairs.flow_map.triton_kernel import map_rows

        stop_share = STOP_SHARE if stop else 0.0
        narrow_size = self.vocab_size // GATHER_SHARE if self.vocab_size >= GATHER_MIN_VOCAB else 0
        batch_size = max(1, GPU_NUMBERS // self.vocab_size)
        batches = (tensor.split(batch_size) for tensor in (noise_NC, log_probs_NV, peak_N1))
        results = [
            map_rows(
                noise_MC,
                log_probs_MV,
                peak_M1,
                self._codebook.codebook_VC,
                *self._coefficient_tables,
                stop_share=stop_share,
                least_weight=LEAST_WEIGHT,
                narrow_size=narrow_size,
            )
            for noise_MC, log_probs_MV, peak_M1 in zip(*batches, strict=True)
        ]
        tokens_N, num_evaluations_N = map(torch.cat, zip(*results, strict=True))
        return MappedTokens(tokens_N, num_evaluations_N)

    def _check_rows(self, noise_NC: Tensor, log_probs_NV: Tensor) -> Tensor:
        """Raise the ValueErrors of `__call__`; return the largest log-probability of each row, (N, 1)."""
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
                raise ValueError(f"{name} is on {tensor.device}, the flow map on {self.device}")
        peak_N1 = log_probs_NV.amax(dim=1, keepdim=True)
        peak_N = peak_N1.squeeze(1)
        problems = {
            "noise contains NaN or infinite numbers": ~torch.isfinite(noise_NC).all(dim=1),
            "log_probs leaves no token possible (all are -inf)": peak_N == -torch.inf,
            "log_probs contains NaN or +inf": ~torch.isfinite(peak_N),
        }
        # One test for all problems, because each one waits for the GPU.
        if bool(torch.stack(list(problems.values())).any()):
            for problem, is_bad_N in problems.items():
                if bool(is_bad_N.any()):
                    raise ValueError(f"row {int(is_bad_N.nonzero()[0])}: {problem}")
        return peak_N1

    def _batches(self, log_probs_NV: Tensor) -> Iterator[tuple[Tensor, int | None]]:
        """Split the rows into batches: their indices, and how many codebook rows each gathers (None: all)."""
        budget = CPU_NUMBERS if self.device.type == "cpu" else GPU_NUMBERS
        every_N = torch.arange(len(log_probs_NV), device=self.device)
        if self.vocab_size < GATHER_MIN_VOCAB:
            wide_M, narrow_M, sizes = every_N, every_N[:0], []
        else:
            # Only a row's own support decides, so the result of a row does not depend on its batch.
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
    """The codebook with mean 0 and mean square 1, computed in float64, returned as float32."""
    rows_VC = codebook_VC.detach().cpu().double()
    rows_VC = rows_VC - rows_VC.mean(dim=0)
    extent = rows_VC.square().mean().sqrt().item()
    return (rows_VC / extent if extent > 0 else rows_VC).float()
