"""Seconds per image at steady state: warm up, alternate between the methods, take the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from distill.sampling.method_spec import Method, SkipN
from distill.sampling.methods import Methods
from generate_pairs.compute.threads import computing_threads

BATCH_SIZES = (1, 64)
ROUNDS = 20
SECONDS_A_TURN = 0.03

MIN_ROUNDS = 3
MAX_SECONDS = 4.0
"""A function that has run for this long, in at least MIN_ROUNDS turns, gets no more turns: a slow one would dominate the
evaluation, and the median of long turns is stable."""


def seconds_per_image(functions: Mapping[str, Callable[[int], object]], batch_size: int) -> dict[str, float]:
    """Median wall time per image of each `function(batch_size)`.

    The functions take turns, round after round, so that a temporary slowdown of the machine affects all of them. Measured
    with one CPU thread: at these sizes more threads slow every method down, and not all by the same factor.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    with computing_threads(1):
        for function in functions.values():
            function(batch_size)
        for turn in range(ROUNDS):
            for name, function in functions.items():
                if turn >= MIN_ROUNDS and sum(times[name]) > MAX_SECONDS:
                    continue
                end = time.perf_counter() + SECONDS_A_TURN
                while True:
                    start = time.perf_counter()
                    function(batch_size)
                    times[name].append(time.perf_counter() - start)
                    if time.perf_counter() > end:
                        break
    return {name: statistics.median(measured) / batch_size for name, measured in times.items()}


def time_methods(methods: Methods, batch_sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Seconds per image by batch size: of each method without decoding, and of the decoder as "decode".

    skip-N is left out: here it computes all steps of the teacher.
    """
    device = methods.teacher.codebook_VC.device

    def synchronised(result: object) -> object:
        # CUDA calls return before the work is done.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    def sequence_of(method: Method) -> Callable[[int], object]:
        def generate(batch_size: int) -> object:
            labels_B = torch.arange(batch_size, device=device) % methods.student.num_classes
            with torch.inference_mode():
                return synchronised(methods.sequence(method, 0, labels_B))

        return generate

    def decode(batch_size: int) -> object:
        with torch.inference_mode():
            return synchronised(methods.teacher.tokenizer.decode(methods.noise(0, batch_size)))

    functions = {
        **{method.name: sequence_of(method) for method in methods.compared if not isinstance(method, SkipN)},
        "decode": decode,
    }
    measured = {size: seconds_per_image(functions, size) for size in batch_sizes}
    return {name: {str(size): measured[size][name] for size in batch_sizes} for name in functions}
