"""Noise: exact values, independence of the batch, and distribution."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from scipy import stats

from shards import gaussian_noise
from shards.format.noise import noise_prefixes, philox_words, uniform_numbers

pytestmark = pytest.mark.quick

MASK = 2**64 - 1


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 as published (Salmon et al., SC 2011), with Python integers."""
    words = [(counter >> (64 * place)) & MASK for place in range(4)]
    first_key, second_key = key
    for _ in range(10):
        low = words[0] * 0xD2E7470EE14C6C93
        high = words[2] * 0xCA5A826395121157
        words = [(high >> 64) ^ words[1] ^ first_key, high & MASK, (low >> 64) ^ words[3] ^ second_key, low & MASK]
        first_key = (first_key + 0x9E3779B97F4A7C15) & MASK
        second_key = (second_key + 0xBB67AE8584CAA73B) & MASK
    return words


@pytest.mark.parametrize("seed", [5, 2**64 - 1])
@pytest.mark.parametrize("first", [0, 1000, 10**9 - 7])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (6, 3), (40, 32), (680, 32)])
def test_prefixes_are_those_of_the_noise(seed: int, first: int, shape: tuple[int, int]) -> None:
    noise = gaussian_noise(seed, first, count=7, shape=shape).reshape(7, -1)[:, :4]
    prefixes = noise_prefixes(seed, first, count=7, shape=shape)
    assert (prefixes.dtype, prefixes.shape) == (noise.dtype, noise.shape)
    assert prefixes.tobytes() == noise.tobytes()


@pytest.mark.parametrize("seed", [0, 11, 2**63, 2**64 - 1])
def test_words_of_many_counters_are_those_of_each(seed: int) -> None:
    words_B4 = philox_words(seed, first=2**40 - 3, count=5, step=2**33 + 1)
    counters = [2**40 - 3 + place * (2**33 + 1) for place in range(5)]
    assert words_B4.tolist() == [philox(counter, (seed, 0)) for counter in counters]
    assert philox_words(seed, first=1, count=0, step=1).shape == (0, 4)


def test_golden_values() -> None:
    """NOISE: another value means that all existing pairs were made from other noise."""
    one = [0.1585693359375, 2.982421875, -1.92578125, -0.82470703125, -0.2025146484375, 1.15625]
    other = [0.560546875, 1.55859375, 0.5595703125, 0.60546875, -0.033172607421875, 1.0556640625]
    assert gaussian_noise(seed=0, first=0, count=2, shape=(2, 3)).ravel().tolist() == one + other
    assert (
        hashlib.sha256(gaussian_noise(1, 10**6, 500, (16, 3)).tobytes()).hexdigest()
        == "97b630e70fe6f82f0aff4e559758c2dd239825688845f568fe8e030331fb401b"
    )
    assert (
        hashlib.sha256(gaussian_noise(2**64 - 1, 3, 5, (680, 32), 9).tobytes()).hexdigest()
        == "1307b71faa91c15173c4fd555c57cca8dca302e3ed182fa4103a4352e7eb1584"
    )


def test_it_is_box_muller_of_the_published_counter_function() -> None:
    seed, stream, pair_index, shape = 11, 2, 41, (3, 3)
    normal = []
    for block in range(3):
        words = philox(pair_index * 3 + block + 1, (seed, stream))
        for one, other in (words[:2], words[2:]):
            radius = math.sqrt(-2 * math.log(((one >> 12) + 0.5) / 2**52))
            angle = 2 * math.pi * ((other >> 12) + 0.5) / 2**52
            normal += [radius * math.cos(angle), radius * math.sin(angle)]
    expected = np.array(normal[:9]).astype(np.float16).reshape(shape)
    assert np.array_equal(gaussian_noise(seed, pair_index, 1, shape, stream)[0], expected)


@pytest.mark.parametrize("shape", [(16, 3), (5, 1), (3, 3), (680, 32)])
def test_a_pair_does_not_depend_on_its_neighbours_or_the_batch(shape) -> None:
    whole = gaussian_noise(5, 100, 40, shape)
    assert whole.shape == (40, *shape)
    assert whole.dtype == np.float16
    for start, stop in ((0, 1), (7, 19), (39, 40)):
        assert np.array_equal(gaussian_noise(5, 100 + start, stop - start, shape), whole[start:stop])


def test_a_long_batch_equals_its_parts() -> None:
    whole = gaussian_noise(5, 0, 3000, (16, 3))
    assert np.array_equal(whole[1300:1400], gaussian_noise(5, 1300, 100, (16, 3)))


def test_distribution_is_standard_normal() -> None:
    noise = gaussian_noise(3, 0, 20_000, (16, 3)).astype(np.float64)
    count = noise.size
    assert np.isfinite(noise).all()
    # Five standard errors of each moment.
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert abs(np.corrcoef(noise.reshape(count // 2, 2).T)[0, 1]) < 5 / math.sqrt(count // 2)
    # The relative step of float16, 2**-11, is small compared with the test's resolution at this sample size.
    assert stats.kstest(noise.ravel()[:200_000], "norm").pvalue > 1e-3
    for place in range(0, 48, 7):
        assert stats.kstest(noise.reshape(-1, 48)[:, place], "norm").pvalue > 1e-3


def test_largest_possible_value_is_finite() -> None:
    assert np.isfinite(np.float16(math.sqrt(-2 * math.log(0.5 / 2**52))))


def test_seeds_streams_and_pairs_are_unrelated() -> None:
    base = gaussian_noise(0, 0, 1000, (16, 3)).ravel().astype(np.float64)
    others = [(1, 0, 0), (0, 0, 1), (0, 1000, 0), (2**63, 0, 0)]
    for seed, first, stream in others:
        other = gaussian_noise(seed, first, 1000, (16, 3), stream).ravel().astype(np.float64)
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / math.sqrt(len(base))


def test_no_pairs() -> None:
    assert gaussian_noise(0, 5, 0, (16, 3)).shape == (0, 16, 3)


@pytest.mark.parametrize("arguments", [(-1, 0, 1), (2**64, 0, 1), (0, -1, 1), (0, 0, -1)])
def test_arguments_out_of_range(arguments) -> None:
    with pytest.raises(ValueError, match="must"):
        gaussian_noise(*arguments, (16, 3))


def test_uniform_numbers_are_the_published_words() -> None:
    found = uniform_numbers(seed=11, first=41, count=1, size=6, stream=2)
    words = philox(41 * 2 + 1, (11, 2)) + philox(41 * 2 + 2, (11, 2))
    assert found.tolist() == [[((word >> 12) + 0.5) / 2**52 for word in words[:6]]]


@pytest.mark.parametrize("size", [1, 4, 21, 680])
def test_uniform_numbers_do_not_depend_on_the_batch(size: int) -> None:
    whole = uniform_numbers(5, 100, 40, size, 3)
    assert (whole.shape, whole.dtype) == ((40, size), np.float64)
    for start, stop in ((0, 1), (7, 19), (39, 40), (12, 12)):
        assert np.array_equal(uniform_numbers(5, 100 + start, stop - start, size, 3), whole[start:stop])


def test_uniform_numbers_are_uniform_and_differ_between_streams() -> None:
    numbers = uniform_numbers(3, 0, 20_000, 10, 2)
    assert numbers.min() > 0
    assert numbers.max() < 1
    for place in range(10):
        assert stats.kstest(numbers[:, place], "uniform").pvalue > 1e-3
    other = uniform_numbers(3, 0, 20_000, 10, 3)
    assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(numbers.size)
    with pytest.raises(ValueError, match="must"):
        uniform_numbers(0, -1, 1, 4, 2)
