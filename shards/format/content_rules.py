"""What the content of every pair obeys, whoever made it: the range of tokens, the rule of labels, the counter of noise.

A hash says that a file is what was committed; these say that what was committed is pairs of this data set. Whether a
token in range is the one that the noise leads to, nobody can say but the teacher, by making the shard again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shards.format.noise import gaussian_noise, noise_beginnings
from shards.format.pairs import Pairs, label
from shards.format.spec import Array, PairSpec


def broken_rules(spec: PairSpec, pairs: Pairs, foreign_B: Array) -> Iterator[tuple[str, str]]:
    """Each rule that consecutive pairs break: its kind ("tokens", "labels" or "noise"), and in words how.

    Args:
        spec: the data set's spec.
        pairs: consecutive pairs, at least one.
        foreign_B: which pairs hold noise that is not theirs, see `wrong_noise`.
    """
    # Without its sign, a negative token lies beyond any vocabulary.
    unsigned_BL = pairs.tokens_BL.view(f"u{spec.token_dtype.itemsize}")
    outside_B = unsigned_BL.max(axis=1) >= spec.vocab_size
    mislabelled_B = np.not_equal(pairs.label_B, label(pairs.index_B, spec.num_classes))
    rules = [
        ("tokens", outside_B, f"tokens outside 0 .. {spec.vocab_size - 1}"),
        ("labels", mislabelled_B, f"a label that is not pair_index % {spec.num_classes}"),
        ("noise", foreign_B, f"noise that seed {spec.seed} does not give"),
    ]
    for kind, breaking_B, what in rules:
        if breaking_B.any():
            first = pairs.index_B[np.argmax(breaking_B)]
            yield kind, f"{np.count_nonzero(breaking_B)} pairs, the first of them {first}, hold {what}"


def wrong_noise(spec: PairSpec, pairs: Pairs, whole: bool) -> Array:
    """Which of consecutive pairs (B,) hold other noise than their counter gives, bit by bit; bool.

    Args:
        spec: the data set's spec.
        pairs: consecutive pairs, at least one.
        whole: hold all numbers of stored noise against their counter, which takes longer than all the rest of
            reading them, or only the first few of each pair, which tell any two pairs apart.
    """
    first, count = int(pairs.index_B[0]), len(pairs)
    if spec.noise != "stored":
        # Made from its counter when it was read, and held against its checksum.
        return np.zeros(count, dtype=np.bool_)
    given = pairs.noise_BLC.view(np.uint16).reshape(count, -1)
    make = gaussian_noise if whole else noise_beginnings
    expected = make(spec.seed, first, count, spec.noise_shape).view(np.uint16).reshape(count, -1)
    return (expected != given[:, : expected.shape[1]]).any(axis=1)
