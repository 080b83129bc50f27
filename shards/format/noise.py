"""Counter-based random numbers: Gaussian noise and uniform numbers that do not depend on batch, worker or order.

Raw Philox words are a published algorithm. Their conversion to normal numbers is implemented here, because the
distributions of a library's generators may change with any release.
"""

from __future__ import annotations

import numpy as np

from shards.format.spec import Array

_WORDS_PER_BLOCK = 4
# Small enough for the temporaries of one pass to stay in the processor's cache.
_WORDS_PER_PASS = 2**16
_ROUNDS = 10
_MULTIPLIERS_21 = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], dtype=np.uint64)
_KEY_STEPS_21 = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], dtype=np.uint64)


def gaussian_noise(seed: int, first: int, count: int, shape: tuple[int, int], stream: int = 0) -> Array:
    """Standard normal noise of pairs `first` .. `first + count - 1`. Changing any of its bits breaks: NOISE.

    Philox4x64-10 with the key (seed, stream) gives four 64-bit words per counter. With n = ceil(L C / 4), pair i uses the
    n counters from i n + 1 onwards. Box-Muller in float64 is rounded once to float16. Platforms whose logarithm or sine
    differ in the last bits disagree in about one float16 in 2^39.

    Args:
        seed: of the data set, below 2^64.
        first: index of the first pair.
        count: number of pairs.
        shape: (L, C) of a pair.
        stream: below 2^64; separates independent uses of one seed. Pairs use stream 0.

    Returns:
        (count, L, C) float16, all finite (below 8.6 in magnitude).

    Raises:
        ValueError: a number is out of its range.
    """
    size = shape[0] * shape[1]
    blocks = -(-size // _WORDS_PER_BLOCK)
    words_per_pair = blocks * _WORDS_PER_BLOCK
    generator = _generator(seed, first, count, blocks, stream)
    noise = np.empty((count, size), dtype=np.float16)
    step = max(1, _WORDS_PER_PASS // words_per_pair)
    for start in range(0, count, step):
        rows = noise[start : start + step]
        words = generator.random_raw(len(rows) * words_per_pair)
        rows[:] = _box_muller(words).reshape(len(rows), words_per_pair)[:, :size]
    return noise.reshape(count, *shape)


def uniform_numbers(seed: int, first: int, count: int, size: int, stream: int) -> Array:
    """Uniform numbers of the items `first` .. `first + count - 1`: the words of `gaussian_noise` before Box-Muller.

    Returns (count, size) float64, strictly between 0 and 1. The stream must differ from that of any other use of the
    seed. Raises `ValueError` if a number is out of its range.
    """
    blocks = -(-size // _WORDS_PER_BLOCK)
    words_per_item = blocks * _WORDS_PER_BLOCK
    words = _generator(seed, first, count, blocks, stream).random_raw(count * words_per_item)
    return _to_unit_interval(words.reshape(count, words_per_item)[:, :size])


def noise_prefixes(seed: int, first: int, count: int, shape: tuple[int, int]) -> Array:
    """The first numbers of each pair's `gaussian_noise`, from its first counter: (B, up to 4) float16."""
    size = shape[0] * shape[1]
    blocks = -(-size // _WORDS_PER_BLOCK)
    words_B4 = philox_words(seed, first * blocks + 1, count, blocks)
    normal = _box_muller(words_B4.ravel()).reshape(count, _WORDS_PER_BLOCK)
    return normal[:, : min(size, _WORDS_PER_BLOCK)].astype(np.float16)


def philox_words(seed: int, first: int, count: int, step: int) -> Array:
    """The words of counters `first`, `first + step`, ... (all below 2**64): (B, 4) uint64.

    numpy's generator is fast for consecutive counters only. This is Philox4x64-10 with the key (seed, 0) as
    published (Salmon et al., SC 2011), vectorised over counters.
    """
    # Two of the four words of a counter are multiplied; the products are mixed with the other two.
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
    """A generator whose next words are those of item `first`, with `blocks` counters per item."""
    if not (0 <= seed < 2**64 and 0 <= stream < 2**64 and first >= 0 and count >= 0):
        raise ValueError(
            f"seed {seed}, stream {stream}, first {first} and count {count} must not be negative, "
            "and seed and stream must be below 2**64"
        )
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=first * blocks)


def _to_unit_interval(words: Array) -> Array:
    # Centres of 2**52 equal intervals: every value is exact, and neither 0 nor 1 occurs.
    numbers: Array = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return numbers


def _wide_product(one: Array, other: Array) -> tuple[Array, Array]:
    """High and low words of the 128-bit products of uint64 numbers, computed from 32-bit halves."""
    half, mask = np.uint64(32), np.uint64(2**32 - 1)
    one_high, one_low, other_high, other_low = one >> half, one & mask, other >> half, other & mask
    middle = one_high * other_low + (one_low * other_low >> half)
    carry = one_low * other_high + (middle & mask)
    return one_high * other_high + (middle >> half) + (carry >> half), one * other


def _box_muller(words: Array) -> Array:
    """Convert an even number of uniform 64-bit words to as many standard normal float64 numbers."""
    uniform = _to_unit_interval(words)
    radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
    angle = (2.0 * np.pi) * uniform[1::2]
    normal = np.empty(len(words))
    np.multiply(radius, np.cos(angle), out=normal[0::2])
    np.multiply(radius, np.sin(angle), out=normal[1::2])
    return normal
