"""Counter-based Gaussian noise: (seed, pair_index) -> (L, C), whatever the batch, the worker or the order.

Beside it uniform numbers, for draws that are the same in any batch.

Raw Philox words are a published algorithm; what turns them into normal numbers is written here, because the
distributions of library generators may change with any release.
"""

from __future__ import annotations

import numpy as np

from shards.format.spec import Array

WORDS_PER_BLOCK = 4
# Small enough for the temporaries of one pass to stay in the processor's cache.
WORDS_PER_PASS = 2**16

_ROUNDS = 10
_MULTIPLIERS_21 = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], dtype=np.uint64)
_KEY_STEPS_21 = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], dtype=np.uint64)


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
    size = shape[0] * shape[1]
    blocks = -(-size // WORDS_PER_BLOCK)
    words_per_pair = blocks * WORDS_PER_BLOCK
    generator = _generator(seed, first, count, blocks, stream)
    noise = np.empty((count, size), dtype=np.float16)
    step = max(1, WORDS_PER_PASS // words_per_pair)
    for start in range(0, count, step):
        rows = noise[start : start + step]
        words = generator.random_raw(len(rows) * words_per_pair)
        rows[:] = box_muller(words).reshape(len(rows), words_per_pair)[:, :size]
    return noise.reshape(count, *shape)


def uniform_numbers(seed: int, first: int, count: int, size: int, stream: int) -> Array:
    """Numbers between 0 and 1 of things `first` .. `first + count - 1`, as `gaussian_noise` counts pairs.

    They are the numbers of the same Philox words before Box-Muller: 52 bits and a half, never 0 and never 1.

    Args:
        seed: 0 <= seed < 2**64.
        first: number of the first thing.
        count: how many things B.
        size: how many numbers L each of them has.
        stream: another one than that of any other use of the seed.

    Returns:
        (B, L) float64.

    Raises:
        ValueError: an argument out of its range.
    """
    blocks = -(-size // WORDS_PER_BLOCK)
    words_per_thing = blocks * WORDS_PER_BLOCK
    words = _generator(seed, first, count, blocks, stream).random_raw(count * words_per_thing)
    return _between_0_and_1(words.reshape(count, words_per_thing)[:, :size])


def noise_beginnings(seed: int, first: int, count: int, shape: tuple[int, int]) -> Array:
    """The first numbers of each pair's `gaussian_noise`, those of its first counter: (B, up to 4) float16."""
    size = shape[0] * shape[1]
    blocks = -(-size // WORDS_PER_BLOCK)
    words_B4 = philox_words(seed, first * blocks + 1, count, blocks)
    normal = box_muller(words_B4.ravel()).reshape(count, WORDS_PER_BLOCK)
    return normal[:, : min(size, WORDS_PER_BLOCK)].astype(np.float16)


def philox_words(seed: int, first: int, count: int, step: int) -> Array:
    """The words of counters `first`, `first + step`, ..., all below 2**64, at once: (B, 4) uint64.

    numpy's generator gives neighbouring counters fast, and distant ones one by one. This is Philox4x64-10 under
    the key (seed, 0) as published (Salmon et al., SC 2011), for many counters side by side.
    """
    # Of a counter's words in two pairs: those that are multiplied, and those that the products are mixed with.
    multiplied_2B = np.zeros((2, count), dtype=np.uint64)
    multiplied_2B[0] = np.arange(first, first + count * step, step, dtype=np.uint64)
    mixed_2B = np.zeros((2, count), dtype=np.uint64)
    key_21 = np.array([[seed], [0]], dtype=np.uint64)
    for _ in range(_ROUNDS):
        high_2B, low_2B = _wide_product(multiplied_2B, _MULTIPLIERS_21)
        multiplied_2B, mixed_2B = high_2B[::-1] ^ mixed_2B ^ key_21, low_2B[::-1]
        key_21 = key_21 + _KEY_STEPS_21
    return np.stack([multiplied_2B[0], mixed_2B[0], multiplied_2B[1], mixed_2B[1]], axis=1)


def _generator(seed: int, first: int, count: int, blocks: int, stream: int) -> np.random.Philox:
    """Gives the words of thing `first` next, where each owns `blocks` counters."""
    if not (0 <= seed < 2**64 and 0 <= stream < 2**64 and first >= 0 and count >= 0):
        raise ValueError(
            f"seed {seed}, stream {stream}, first {first} and count {count} must not be negative"
        )
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=first * blocks)


def _between_0_and_1(words: Array) -> Array:
    # 52 bits and a half: every value is exact, and neither 0 nor 1 can occur.
    numbers: Array = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return numbers


def _wide_product(one: Array, other: Array) -> tuple[Array, Array]:
    """Upper and lower words of the products of unsigned 64-bit numbers, from those of their halves."""
    half, mask = np.uint64(32), np.uint64(2**32 - 1)
    one_high, one_low, other_high, other_low = one >> half, one & mask, other >> half, other & mask
    middle = one_high * other_low + (one_low * other_low >> half)
    carry = one_low * other_high + (middle & mask)
    return one_high * other_high + (middle >> half) + (carry >> half), one * other


def box_muller(words: Array) -> Array:
    """Uniform 64-bit words (an even number) -> as many standard normal float64 numbers, two by two."""
    uniform = _between_0_and_1(words)
    radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
    angle = (2.0 * np.pi) * uniform[1::2]
    normal = np.empty(len(words))
    np.multiply(radius, np.cos(angle), out=normal[0::2])
    np.multiply(radius, np.sin(angle), out=normal[1::2])
    return normal
