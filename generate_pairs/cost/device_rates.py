"""Estimates the time of pairs on a device: counted work divided by the device's rates.

The estimate adds the times of arithmetic, memory traffic and operation launches; where they overlap, the device is
faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from generate_pairs.compute.threads import computing_threads
from generate_pairs.cost.operation_counts import StepWork, Work

FLOPS_SHARE = 0.4
BYTES_SHARE = 0.6
"""Assumed shares of a GPU's peak rates that real programs reach."""

GPU_CALL_SECONDS = 5e-6
"""Assumed time to launch one operation on a GPU."""

MEASURED_SIDE = 1024
MEASURED_NUMBERS = 2**24
SMALL_SIDE = 32
MEASURING_SECONDS = 0.35
"""The CPU is measured with a square matrix product, a copy and a tiny product, each for `MEASURING_SECONDS`."""


@dataclass(frozen=True)
class Device:
    """Achievable rates of one device, and the source of the figures, for the user.

    `half_flops` per second are of products in bfloat16 or float16, `single_flops` in float32 without reduced precision.
    """

    half_flops: float
    single_flops: float
    bytes_per_second: float
    call_seconds: float
    about: str

    def seconds(self, work: Work, flops_per_second: float) -> float:
        """The time that work takes at this rate of arithmetic."""
        memory = work.num_bytes / self.bytes_per_second
        return work.flops / flops_per_second + memory + work.calls * self.call_seconds


def _gpu(half_tflops: float, single_tflops: float, terabytes: float) -> Device:
    about = (
        f"{FLOPS_SHARE:.0%} of {half_tflops:g} TFLOP/s in half precision and of {single_tflops:g} in float32, "
        f"{BYTES_SHARE:.0%} of {terabytes:g} TB/s, {GPU_CALL_SECONDS * 1e6:g} us an operation"
    )
    half_flops, single_flops = FLOPS_SHARE * half_tflops * 1e12, FLOPS_SHARE * single_tflops * 1e12
    return Device(half_flops, single_flops, BYTES_SHARE * terabytes * 1e12, GPU_CALL_SECONDS, about)


GPUS: Mapping[str, Device] = {
    "a100": _gpu(312, 19.5, 2.0),
    "h100": _gpu(989, 67, 3.35),
    "h200": _gpu(989, 67, 4.8),
}
"""The SXM cards: peak dense products and memory bandwidth, from their data sheets. On an H100 two presets took 0.70 and
1.07 times the estimate (docs/explanation/benchmarks.md); the other cards were not measured.
"""

CPU = "cpu"
DEVICES = (*GPUS, CPU)


def device_rates(name: str) -> Device:
    """The rates of a device of `DEVICES`. The CPU is measured, which takes about a second."""
    return measure_cpu() if name == CPU else GPUS[name]


def measure_cpu() -> Device:
    """Measure this machine's CPU in float32 with one thread, as a worker uses; half precision counts as no faster."""
    with computing_threads(1), torch.inference_mode():
        square = torch.rand(MEASURED_SIDE, MEASURED_SIDE)
        flops = 2 * MEASURED_SIDE**3 / _seconds_per_call(lambda: square @ square)
        source, target = torch.rand(MEASURED_NUMBERS), torch.empty(MEASURED_NUMBERS)
        bytes_per_second = 2 * source.nbytes / _seconds_per_call(lambda: target.copy_(source))
        small = torch.rand(SMALL_SIDE, SMALL_SIDE)
        call_seconds = _seconds_per_call(lambda: small @ small)
    about = (
        f"{flops / 1e9:.0f} GFLOP/s, {bytes_per_second / 1e9:.0f} GB/s, {call_seconds * 1e6:.1f} us an operation, "
        "measured here with one thread"
    )
    return Device(flops, flops, bytes_per_second, call_seconds, about)


def batch_seconds(steps: Sequence[StepWork], device: Device, dtype: str) -> float:
    """The time of a batch; the flow map always computes in float32."""
    flops = device.single_flops if dtype == "float32" else device.half_flops
    return sum(
        device.seconds(step.transformer, flops) + device.seconds(step.flow_map, device.single_flops) for step in steps
    )


def _seconds_per_call(call: Callable[[], object]) -> float:
    call()
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < MEASURING_SECONDS:
        call()
        count += 1
    return elapsed / count
