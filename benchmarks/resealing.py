"""Sealed damage: content that changed before it was hashed, so that the row's hashes match it.

It results from a software mistake or from faulty memory while a shard is made; only the content rules can detect it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from damage import Plant
from planting import Copy

from shards.format.spec import Array
from shards.format.tar_layout import Layout

Change = Callable[[Copy, Layout, Array], None]


def _resealed(change: Change) -> Plant:
    return lambda copy: copy.reseal(copy.shard(), lambda layout, rows: change(copy, layout, rows))


def _place(copy: Copy) -> int:
    return copy.choice.randrange(copy.spec.pairs_per_shard)


def _another_label(copy: Copy, layout: Layout, rows: Array) -> None:
    place = _place(copy)
    digit = layout.label.offset + 512
    rows[place, digit] = ord("0") + (rows[place, digit] - ord("0") + 1) % copy.spec.num_classes


def _labels_rolled(copy: Copy, layout: Layout, rows: Array) -> None:
    digit = layout.label.offset + 512
    rows[:, digit] = np.roll(rows[:, digit], 1)


def _token_out_of_range(copy: Copy, layout: Layout, rows: Array) -> None:
    tokens_L = rows[_place(copy), layout.tokens.data].view(copy.spec.token_dtype)
    tokens_L[copy.choice.randrange(len(tokens_L))] = copy.choice.choice((copy.spec.vocab_size, 65535))


def _other_noise(copy: Copy, layout: Layout, rows: Array) -> None:
    """The noise, or its checksum, of the next pair."""
    place = _place(copy)
    rows[place, layout.noise.data] = rows[(place + 1) % len(rows), layout.noise.data]


def _a_pair_twice(copy: Copy, layout: Layout, rows: Array) -> None:
    """A sample contains the noise and tokens of another pair with the same label, under its own key."""
    place = copy.choice.randrange(len(rows) - copy.spec.num_classes)
    for member in (layout.noise, layout.tokens):
        rows[place, member.data] = rows[place + copy.spec.num_classes, member.data]


def _a_sample_twice(copy: Copy, layout: Layout, rows: Array) -> None:
    """A sample is replaced by another one, including its key."""
    one, other = copy.choice.sample(range(len(rows)), 2)
    rows[one] = rows[other]


def _an_empty_sample(copy: Copy, layout: Layout, rows: Array) -> None:
    rows[_place(copy)] = 0


def _two_samples_swapped(copy: Copy, layout: Layout, rows: Array) -> None:
    one, other = copy.choice.sample(range(len(rows)), 2)
    rows[[one, other]] = rows[[other, one]]


_CHANGES: dict[str, Change] = {
    "another label": _another_label,
    "labels of the neighbours": _labels_rolled,
    "a token out of range": _token_out_of_range,
    "noise of another pair": _other_noise,
    "a pair twice": _a_pair_twice,
    "a sample twice": _a_sample_twice,
    "a sample of zeros": _an_empty_sample,
    "two samples swapped": _two_samples_swapped,
}


def _one_number_of_noise(copy: Copy, layout: Layout, rows: Array) -> None:
    last = layout.noise.data.stop - copy.choice.choice((1, 2))
    rows[_place(copy), last] ^= 1


def _another_token(copy: Copy, layout: Layout, rows: Array) -> None:
    tokens_L = rows[_place(copy), layout.tokens.data].view(copy.spec.token_dtype)
    at = copy.choice.randrange(len(tokens_L))
    tokens_L[at] = (tokens_L[at] + 1) % copy.spec.vocab_size


RESEALED = {f"re-sealed with {name}": _resealed(change) for name, change in _CHANGES.items()}
"""Damage that `verify` must find and that training must never receive."""

FOUND_ONLY = {"re-sealed with one number of noise changed": _resealed(_one_number_of_noise)}
"""Damage that `verify` must find, but that training may receive before `verify` runs."""

UNKNOWABLE = {"re-sealed with another token in range": _resealed(_another_token)}
"""Damage that can be detected only by running the teacher again."""
