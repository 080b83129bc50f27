"""Captions of handwritten digits, for the embedded text-conditional teacher: fifteen for each digit.

Eleven of them are sums and differences: a digit d is x + y in d + 1 ways and x - y in 10 - d. So all digits are
captioned alike often, and whoever wants to draw them has to read more than one word.
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
    """All captions, the digits in turn: any ten neighbours show each digit once."""
    return tuple(caption for each in zip(*map(_captions_of, range(10)), strict=True) for caption in each)


@cache
def _digits() -> Mapping[str, int]:
    return {caption: index % 10 for index, caption in enumerate(digits_captions())}


def digit_of(caption: str) -> int | None:
    """The digit that a caption asks for; None where it is none of `digits_captions`."""
    return _digits().get(caption)


@cache
def spelled_numbers() -> tuple[str, ...]:
    """The words of all captions, sorted."""
    return tuple(sorted({word for caption in digits_captions() for word in caption.split()}))
