"""Counter-based Gaussian noise: (seed, pair_index) -> (L, C), whatever the batch, the worker or the order.

Raw Philox words are a published algorithm; what turns them into normal numbers is written here, because the
distributions of library generators may change with any release.
"""

from __future__ import annotations

import numpy as np

from shards.record import Array

WORDS_PER_BLOCK = 4
# Small enough for the temporaries of one pass to stay in the processor's cache.
WORDS_PER_PASS = 2**16


def gaussian_noise(seed: int, first: int, count: int, shape: tuple[int, int], stream: int = 0) -> Array:
    """Standard normal noise of pairs `first` .. `first + count - 1`. Changing any of its bits breaks: NOISE.

    Philox4x64-10 under the key (seed, stream) makes four 64-bit words a counter; with n = ceil(L*C / 4),
    pair i owns the n counters from i*n + 1 on. Box-Muller in float64, rounded once to float16; platforms
    whose logarithm or sine differ in the last bits agree in all but one float16 in 2**39 or so.

    Args:
        seed: 0 <= seed < 2**64.
        first: pair_index of the first pair.
        count: number of pairs B.
        shape: (L, C).
        stream: separates independent uses of one seed; pairs are stream 0.

    Returns:
        (B, L, C) float16, all finite (below 8.6 in magnitude).

    Raises:
        ValueError: an argument out of its range.
    """
    if not (0 <= seed < 2**64 and 0 <= stream < 2**64 and first >= 0 and count >= 0):
        raise ValueError(
            f"seed {seed}, stream {stream}, first {first} and count {count} must not be negative"
        )
    size = shape[0] * shape[1]
    blocks = -(-size // WORDS_PER_BLOCK)
    words_per_pair = blocks * WORDS_PER_BLOCK
    generator = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=first * blocks)
    noise = np.empty((count, size), dtype=np.float16)
    step = max(1, WORDS_PER_PASS // words_per_pair)
    for start in range(0, count, step):
        rows = noise[start : start + step]
        words = generator.random_raw(len(rows) * words_per_pair)
        rows[:] = box_muller(words).reshape(len(rows), words_per_pair)[:, :size]
    return noise.reshape(count, *shape)


def noise_beginnings(seed: int, first: int, count: int, shape: tuple[int, int]) -> Array:
    """The first numbers of each pair's `gaussian_noise`, those of its first counter: (B, up to 4) float16."""
    size = shape[0] * shape[1]
    blocks = -(-size // WORDS_PER_BLOCK)
    generator = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64), counter=first * blocks)
    words = np.empty((count, WORDS_PER_BLOCK), dtype=np.uint64)
    for row in words:
        row[:] = generator.random_raw(WORDS_PER_BLOCK)
        generator.advance(blocks - 1)
    normal = box_muller(words.ravel()).reshape(count, WORDS_PER_BLOCK)
    return normal[:, : min(size, WORDS_PER_BLOCK)].astype(np.float16)


def box_muller(words: Array) -> Array:
    """Uniform 64-bit words (an even number) -> as many standard normal float64 numbers, two by two."""
    # 52 bits and a half: every value is exact, and neither 0 nor 1 can occur.
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
    angle = (2.0 * np.pi) * uniform[1::2]
    normal = np.empty(len(words))
    np.multiply(radius, np.cos(angle), out=normal[0::2])
    np.multiply(radius, np.sin(angle), out=normal[1::2])
    return normal
