"""Captions of handwritten digits for the embedded text-conditional teacher: fifteen for each digit.

Eleven of the fifteen are sums and differences: a digit d is x + y in d + 1 ways and x - y in 10 - d ways. So all digits
have equally many captions, and most captions can only be understood from more than one word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _captions_of(digit: int) -> Iterator[str]:
    name = NAMES[digit]
    yield f"{'an' if name[0] in 'aeiou' and name != 'one' else 'a'} {name}"
    yield f"the digit {name}"
    yield f"the number {name}"
    yield f"a handwritten {name}"
    for first in range(digit + 1):
        yield f"the sum of {NAMES[first]} and {NAMES[digit - first]}"
    for second in range(10 - digit):
        yield f"the difference of {NAMES[digit + second]} and {NAMES[second]}"


@cache
def digits_captions() -> tuple[str, ...]:
    """All captions; caption i shows digit i mod 10."""
    return tuple(caption for group in zip(*map(_captions_of, range(10)), strict=True) for caption in group)


@cache
def _digits() -> Mapping[str, int]:
    return {caption: index % 10 for index, caption in enumerate(digits_captions())}


def digit_of(caption: str) -> int | None:
    """The digit of a caption; None if the caption is not one of `digits_captions`."""
    return _digits().get(caption)


@cache
def caption_words() -> tuple[str, ...]:
    """The distinct words of all captions, sorted."""
    return tuple(sorted({word for caption in digits_captions() for word in caption.split()}))
