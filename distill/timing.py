"""Seconds per image at steady state: warm up, repeat, take the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from distill.threads import computing_threads

BATCH_SIZES = (1, 64)


def seconds_per_image(make: Callable[[int], object], batch_size: int, budget: float = 0.5) -> float:
    """Median wall time of `make(batch_size)` per image, over at least three calls and about `budget` seconds.

    Measured with one CPU thread: at these sizes more threads slow every method down, and not all alike.
    """
    with computing_threads(1):
        make(batch_size)
        times: list[float] = []
        while len(times) < 3 or sum(times) < budget:
            began = time.perf_counter()
            make(batch_size)
            times.append(time.perf_counter() - began)
    return statistics.median(times) / batch_size
