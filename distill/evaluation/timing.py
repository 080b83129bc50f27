"""Seconds per image at steady state: warm up, take turns, take the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from distill.sampling.methods import Methods
from generate_pairs.compute.threads import computing_threads

BATCH_SIZES = (1, 64)
ROUNDS = 20
SECONDS_A_TURN = 0.03

FEWEST_ROUNDS = 3
SECONDS_A_MAKER = 4.0
"""A maker that has had this much time, and so many turns, gets no more: a slow one would take the evaluation for itself,
and a median of long turns is steady."""


def seconds_per_image(makers: Mapping[str, Callable[[int], object]], batch_size: int) -> dict[str, float]:
    """Median wall time per image of each `maker(batch_size)`.

    They take turns, round after round, so that a machine that slows down for a while slows all of them. Measured with
    one CPU thread: at these sizes more threads slow every method down, and not all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in makers}
    with computing_threads(1):
        for make in makers.values():
            make(batch_size)
        for turn in range(ROUNDS):
            for name, make in makers.items():
                if turn >= FEWEST_ROUNDS and sum(times[name]) > SECONDS_A_MAKER:
                    continue
                end = time.perf_counter() + SECONDS_A_TURN
                while True:
                    began = time.perf_counter()
                    make(batch_size)
                    times[name].append(time.perf_counter() - began)
                    if time.perf_counter() > end:
                        break
    return {name: statistics.median(measured) / batch_size for name, measured in times.items()}


def time_methods(methods: Methods, batch_sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Seconds per image by batch size, of each method without decoding and of the decoder, under "decode".

    skip-n is left out: here it walks as far as the teacher.
    """
    device = methods.teacher.codebook_VC.device

    def finished(made: object) -> object:
        # A GPU answers before it has worked.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return made

    def maker(method: str) -> Callable[[int], object]:
        def make(batch_size: int) -> object:
            labels_B = torch.arange(batch_size, device=device) % methods.student.num_classes
            with torch.inference_mode():
                return finished(methods.sequence(method, 0, labels_B))

        return make

    def decode(batch_size: int) -> object:
        with torch.inference_mode():
            return finished(methods.teacher.tokenizer.decode(methods.noise(0, batch_size)))

    makers = {name: maker(name) for name in methods.names if not name.startswith("skip-")}
    measured = {size: seconds_per_image({**makers, "decode": decode}, size) for size in batch_sizes}
    return {name: {str(size): measured[size][name] for size in batch_sizes} for name in (*makers, "decode")}
